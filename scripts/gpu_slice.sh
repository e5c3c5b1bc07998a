#!/usr/bin/env bash
# Measure for a few minutes on a GPU and use all of the time: facts, link, correctness, a rehearsal on a miniature, then a published size,
# most important parts first. The script needs no network and no packages except those listed in docs/gpu.md. It ends by itself, and a
# rerun continues where the previous one ended.
#
#   scripts/gpu_slice.sh [--seconds 570] [--archive FILE.tar.gz] [--folder DIR] [--host-memory 110GiB] [--again]
#                        [--miniature] [--quick]
#
# Tables go to DIR (default: data/measured/CARD) and, every 15 seconds and at the end, into the archive. To copy them into a checkout, run
# `tar -xzf FILE.tar.gz -C data/measured` there. --miniature measures a miniature's sizes instead of the published model's; without a GPU
# this is a rehearsal. --quick only tests that everything works, not how fast it is. --again repeats measurements that earlier runs
# completed, for example after a change of the code. PYTHON names another interpreter.
# Exit status: 0 done, or as much as the time allowed; 1 something failed (see the last lines); 2 invalid usage.
set -uo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
ARCHIVE_EVERY_S=15
ARCHIVE_MOST_BYTES=$((15 << 20)) # a larger archive is written without timelines
LAST_S=10                        # reserved for the last table and archive
NO_TIME=99                       # status of a step that had no time left

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

begin=$(date +%s)
seconds=570 archive="" folder="" host_memory="" model=qwen1.5-moe-a2.7b quick=() again=()
while (($#)); do
    case "$1" in
        --miniature) model=qwen-mini ;;
        --quick) quick=(--quick) ;;
        --again) again=(--again) ;;
        --help | -h) usage 0 ;;
        --seconds | --archive | --folder | --host-memory)
            (($# > 1)) || usage 2 >&2
            name=${1#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift
            ;;
        *)
            echo "gpu_slice: unknown option $1" >&2
            usage 2 >&2
            ;;
    esac
    shift
done
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
    echo "gpu_slice: --seconds takes a whole number of seconds, not '$seconds'" >&2
    exit 2
fi

python=${PYTHON:-python3}
cores=$(env -u OMP_NUM_THREADS nproc) # nproc would follow this variable
card=""
if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader --id=0 2>/dev/null) || card="" # errors go to stdout, too
fi
if [[ -z $card && -e /dev/nvidiactl ]]; then # PyTorch knows which device it can use, but takes seconds to report it
    card=$("$python" -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")')
fi
card=$(tr '[:upper:] ' '[:lower:]-' <<<"$card" | tr -cd 'a-z0-9.-')
card=${card#nvidia-}
[[ -z $folder || $folder == /* ]] || folder=$called_from/$folder
[[ -z $archive || $archive == /* ]] || archive=$called_from/$archive
folder=${folder:-data/measured/${card:-cpu-$cores-cores}}
folder=${folder%/}
archive=${archive:-$folder.tar.gz}
end=$((begin + seconds))
total_kib=$(awk '/^MemTotal/ {print $2}' /proc/meminfo)
if [[ -n $card && $model == qwen1.5* && -z $host_memory ]] && ((total_kib < 60000000)); then
    echo "gpu_slice: this machine reports $((total_kib >> 20)) GiB of memory, but $model needs 29, and 54 with Accelerate;" \
        "if memory grows with use, give its limit: --host-memory 110GiB; otherwise --host-memory ${total_kib}KiB measures what fits" >&2
    exit 2
fi
wanted_transformers='import sys; from importlib.metadata import version; at = version("transformers"); print(at)
sys.exit(tuple(map(int, at.split(".")[:2])) < (5, 23))'
needed="torch transformers accelerate pandas yaml safetensors tqdm typer xxhash"
if ! missing=$("$python" -c 'import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))' $needed); then
    echo "gpu_slice: $python does not run; name a Python with PYTHON=..." >&2
    exit 2
elif [[ -n $missing ]]; then
    echo "gpu_slice: $python lacks $missing; docs/gpu.md lists the requirements" >&2
    exit 2
elif ! old=$("$python" -c "$wanted_transformers" 2>&1); then
    echo "gpu_slice: $python has Transformers $old; docs/gpu.md explains how to provide a later version" >&2
    exit 2
fi
logs=$folder/logs
mkdir -p "$logs" "$(dirname "$archive")" || exit 2
if [[ -d $archive ]] || ! touch "$archive.0"; then
    echo "gpu_slice: $archive cannot be written; name another file with --archive" >&2
    exit 2
fi
rm "$archive.0"
exec 9>"$logs/lock"
if ! flock --nonblock 9; then
    echo "gpu_slice: another call measures into $folder, and concurrent calls would distort the times; wait for it to end" >&2
    exit 2
fi
started=$logs/started # processes of steps, each the leader of a process group
: >"$started"

export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
[[ -n $card ]] || export OMP_NUM_THREADS=1 # a miniature's layers are too small for several threads

# Options shared by all calls of the benchmark, so that each continues what another has measured.
same=(--out "$folder" "${quick[@]}" --traces data/traces --no-predictions)
((${#quick[@]})) || same+=(--prompts 40 --tokens 32 --served 3 --rounds 3 --steps 40 --baseline-tokens 2)
[[ -z $host_memory ]] || same+=(--host-memory "$host_memory")
checked=(mixtral-mini qwen-mini phi-mini)
((${#quick[@]} == 0)) || checked=(phi-mini)
first=(--policy on-demand --policy finemoe --policy finemoe-plus --policy promoe)
rest=(--policy moe-infinity --policy mixtral-offloading --policy deepspeed-inference)

left() { echo $((end - LAST_S - $(date +%s))); }
say() { printf '%4d s  %s\n' $(($(date +%s) - begin)) "$*"; }

# Whether a step was completed with the current code. This saves a second call on the same machine some starts of Python.
code=$(find finemoe/artifact/gpu_bench finemoe/cache finemoe/maps finemoe/models finemoe/policies finemoe/runtime -name '*.py' | sort | xargs cat | cksum)
is_done() { [[ -f $logs/done-$1 && $(cat "$logs/done-$1") == "$code ${quick[*]-}" ]]; }
note_done() { echo "$code ${quick[*]-}" >"$logs/done-$1"; }

# Run a command for at most so many seconds, and never past the end: `within 60 LABEL COMMAND...`. A process that does not end is killed.
within() {
    local most=$1 label=$2 allowed
    shift 2
    allowed=$(left)
    ((allowed > most)) && allowed=$most
    if ((allowed < 5)); then
        say "$label: no time left"
        return $NO_TIME
    fi
    say "$label: at most $allowed s"
    timeout --kill-after=2 "$allowed" "$@" 9>&- &
    echo $! >>"$started"
    wait $! # a signal interrupts this, unlike a command in the foreground
    local status=$?
    # Ended from outside before the step's own limit: there was too little time. (A hang is ended from inside.)
    ((status == 124 || status == 137)) && ((allowed < most)) && return $NO_TIME
    return $status
}

# The same for the benchmark, which keeps the deadline itself and writes its results before it ends.
bench() {
    local most=$1 label=$2 allowed
    shift 2
    allowed=$(left)
    ((allowed > most)) && allowed=$most
    within "$most" "$label" "$python" -m finemoe.artifact.gpu_bench "${same[@]}" --deadline "$((allowed - 3))" "$@"
}

pack() {
    local packed="$archive.$BASHPID" leave_out=(--exclude=traces --exclude='*/.*')
    tar -czf "$packed" -C "$(dirname "$folder")" "${leave_out[@]}" "$(basename "$folder")" 2>/dev/null
    [[ -s $packed ]] || return
    if (($(stat -c %s "$packed") > ARCHIVE_MOST_BYTES)); then
        tar -czf "$packed" -C "$(dirname "$folder")" "${leave_out[@]}" --exclude='timeline-*' "$(basename "$folder")" 2>/dev/null
    fi
    mv "$packed" "$archive"
}

# End everything that was started, regardless of its current parent: the steps with their groups, and the packing.
end_all() {
    local step
    while read -r step; do kill -- "-$step" 2>/dev/null; done <"$started"
    kill "$packing" "$compiling" 2>/dev/null
}

finish() {
    trap - EXIT INT TERM HUP
    end_all
    rm -f "$archive".[0-9]* "$started" # left by an interrupted packing
    timeout 8 "$python" -m finemoe.artifact.gpu_bench show "$folder" 2>&1 | tee "$logs/summary.txt"
    if pack; then say "the measurements are in $folder and $archive"; else say "the measurements are in $folder; $archive cannot be written"; fi
    exec >&- 2>&-
    for _ in {1..20}; do # until the log's last lines are written
        kill -0 "$log" 2>/dev/null || break
        sleep 0.1
    done
    exit "$1"
}

facts() {
    date -u +%FT%TZ
    uname -srm
    grep -E '^(MemTotal|MemAvailable|HugePages_Total|Hugepagesize)' /proc/meminfo
    echo "overcommit_memory $(cat /proc/sys/vm/overcommit_memory), memlock $(ulimit -l) KiB, cores $cores"
    echo "transparent_hugepage $(cat /sys/kernel/mm/transparent_hugepage/enabled 2>/dev/null || echo unknown)"
    nvidia-smi --query-gpu=name,memory.total,driver_version,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current \
        --format=csv 2>/dev/null || echo "no GPU"
    "$python" - <<'PY'
import importlib.metadata as metadata, sys

names = "torch transformers accelerate numpy numba pandas tokenizers safetensors".split()
found = {distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()}
print("python", sys.version.split()[0], *(f"{name} {found.get(name, 'missing')}" for name in names))
PY
}

# Compile the kernels of the policies' engines, concurrently with the first parts.
compile_kernels() {
    CUDA_VISIBLE_DEVICES="" timeout --kill-after=2 "$(left)" "$python" -m finemoe.artifact.gpu_bench compile "${first[@]}" >"$logs/compile.txt" 2>&1 || say "kernels were not compiled in advance; see $logs/compile.txt"
}

correctness() {
    local pids=() status=0 is_bad=0 name
    say "waiting for kernels to be compiled" && wait "$compiling" # once, instead of in each of the following processes
    for name in "${checked[@]}"; do
        bench 240 "correctness of $name" --model "$model" "${first[@]}" --groups "correctness:$name" >"$logs/correctness-$name.txt" 2>&1 &
        pids+=($!)
    done
    if [[ -z $card ]]; then
        true
    elif "$python" -c 'import pytest, hypothesis'; then
        PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 within 240 "CUDA tests" "$python" -m pytest -q -p no:cacheprovider -o addopts= -x \
            tests/runtime/test_cuda_order.py -k cuda_device >"$logs/tests.txt" 2>&1 &
        pids+=($!)
    else
        say "the tests that need CUDA are skipped: pytest or hypothesis is missing"
    fi
    for name in "${pids[@]}"; do failed "$name" && is_bad=1; done
    grep -q 'parts left; run again\|no time left' "$logs"/correctness-*.txt && status=$NO_TIME
    ((is_bad)) && status=1
    tail -n 3 "$logs"/correctness-*.txt
    [[ ! -f $logs/tests.txt ]] || tail -n 15 "$logs/tests.txt"
    return $status
}

# Whether a background process failed for any reason other than a lack of time.
failed() {
    wait "$1"
    local status=$?
    ((status && status != NO_TIME))
}

# In order of importance; `systems:0.25:finemoe` is FineMoE at a quarter of the experts.
worth() {
    local share policy
    for policy in on-demand finemoe finemoe-plus promoe; do printf 'systems:0.25:%s,' $policy; done
    printf 'overhead,baselines,'
    ((${#quick[@]})) || for policy in on-demand finemoe finemoe-plus promoe; do printf 'systems:0.5:%s,' $policy; done
    printf 'chunks,'
    for policy in resident on-demand finemoe finemoe-plus promoe; do printf 'software:%s,' $policy; done
    printf 'kernels,breakdown,launches,hotspots,timeline,device-timeline,'
    ((${#quick[@]})) || for share in 0.125 0.75; do
        for policy in on-demand finemoe finemoe-plus promoe; do printf 'systems:%s:%s,' $share $policy; done
    done
    printf 'software,systems,correctness:compute-sanitizer'
}

packing="" compiling=""
trap 'finish 1' INT TERM HUP
trap 'finish $?' EXIT
exec > >(
    trap '' INT TERM HUP # keeps logging after an interrupt
    exec tee -a "$logs/slice.txt" 9>&-
) 2>&1
log=$!
while sleep "$ARCHIVE_EVERY_S"; do pack; done >/dev/null 2>&1 9>&- &
packing=$!
facts | tee "$logs/facts.txt"
compile_kernels 9>&- &
compiling=$!

# `step NAME COMMAND...`: run it unless it was completed before; exit if it fails or runs out of time.
step() {
    local name=$1 status
    shift
    ((${#again[@]} == 0)) && is_done "$name" && return
    "$@"
    status=$?
    case $status in
        0) note_done "$name" ;;
        "$NO_TIME") say "$name: no time left; nothing is measured without it" && exit 0 ;;
        *) say "$name failed; fix this first, nothing else is measured" && exit 1 ;;
    esac
}

link() {
    local first_arena=1024 status
    [[ -n $card ]] || first_arena=64
    bench 90 "host memory and link" --model "$model" --groups "arenas:$first_arena,copies,mapped,arenas" # 24 GiB may fail
    status=$?
    grep -q "^queued," "$folder/copies.csv" && return 0 # a larger arena may fail; this is a result, too
    grep -q '^copies,.*,no time yet' "$folder/skipped.csv" && return $NO_TIME
    say "nothing was copied: the facts are the result"
    return $((status ? status : 1))
}

# Passes if the systems are served and the results with every expert resident are bit-equal to eager; other parts may fail, here and later.
rehearsal() {
    local mini=$folder/rehearsal groups=systems:0.25,overhead,software,chunks,breakdown,timeline,kernels,baselines status
    bench 90 "a miniature through every part" --out "$mini" --quick --model qwen-mini "${first[@]}" --groups "$groups" \
        --served 1 --rounds 1
    status=$?
    ((status == NO_TIME)) && return $NO_TIME
    for name in on-demand finemoe finemoe-plus promoe; do grep -q "^qwen-mini,$name," "$mini/requests.csv" || return 1; done
    grep -q ',finemoe,.*,True$' "$mini/overhead.csv" && ! grep -q ',\(finemoe\|on-demand\),.*,False$' "$mini/overhead.csv"
}

step link link
step correctness correctness
((${#quick[@]})) || step rehearsal rehearsal # not needed if the quick miniature itself is measured
bench "$seconds" "$model" --model "$model" "${again[@]}" "${first[@]}" "${rest[@]}" --groups "$(worth)"
status=$?
((status == NO_TIME)) && exit 0
exit $((status ? 1 : 0))
