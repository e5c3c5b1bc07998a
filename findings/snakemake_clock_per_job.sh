#!/usr/bin/env bash
# Snakemake 9.27.1: every job that ends leaves a timer running. While jobs wait for cores, each pass of the scheduler starts a timer of
# `--max-jobs-per-timespan` (100/1s by default) whose end causes the next pass. The end of a job also causes a pass, and thereby adds a timer
# that never stops. After n jobs the scheduler passes n times a second, and each pass asks for the size of every input of every waiting job:
# of 75 minutes that finemoe's pipeline took on two cores, Snakemake's own process used nine. finemoe's Snakefile removes the limit, which a
# local run does not need.
# Needs Python 3.11 or newer. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check snakemake==9.27.1
cat >"$folder/Snakefile" <<'SNAKE'
import os
from snakemake.scheduling import job_scheduler

select, passes = job_scheduler.JobScheduler.job_selector, []


def counted(self, jobs):
    passes.append(len(jobs))
    return select(self, jobs)


job_scheduler.JobScheduler.job_selector = counted


onstart:
    if os.environ["LIMIT"] == "none":
        workflow.scheduler.job_rate_limiter = None


onsuccess:
    print("passes", len(passes))


rule all:
    input: expand("{number}.txt", number=range(20)), "long.txt", "last.txt"


rule short:
    output: "{number,[0-9]+}.txt"
    priority: 1
    shell: "touch {output}"


rule long:
    output: "long.txt"
    shell: "sleep 20; touch {output}"


rule last:
    output: "last.txt"
    priority: -1
    shell: "touch {output}"
SNAKE
passes() { # of the scheduler over 22 jobs on one core, while the last one waits for one that takes 20 seconds
    (cd "$folder" && rm -f ./*.txt && LIMIT=$1 venv/bin/snakemake --cores 1 --scheduler greedy --quiet all 2>/dev/null | sed -n 's/^passes //p')
}
with=$(passes default) without=$(passes none)
echo "Snakemake 9.27.1, passes of the scheduler: with the default limit $with, without any $without"
((with > 200 && without < 60)) || { echo "changed; it was over 200 and under 60" && exit 1; }
