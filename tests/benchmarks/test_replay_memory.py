"""Memory of a replay (run with `make bench`): of a whole process, on the trace that is shipped, and above what importing takes,
on a trace of gigabytes that is read from its file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace

pytestmark = pytest.mark.timeout(900)  # a large trace
needs_gpt_oss = pytest.mark.skipif(not sample_path().is_file(), reason="the public gpt-oss-20b trace is not here")
SHIPPED = ROOT / "data" / "traces" / "qwen-mini-40x32.trace"
BEFORE_MB = {"on-demand": 247, "finemoe": 337, "promoe": 363}  # what such a process took at commit 8f7ffb7
WHOLE = """
import re, sys
import finemoe

finemoe.replay(finemoe.RoutingTrace.load(sys.argv[1], mapped=True), sys.argv[2], 0.25)
print(int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read()).group(1)) * 1024 / 1e6)
"""
COPIES = {"on-demand": 20, "finemoe": 4}  # of the trace; a search takes longer
PROGRAM = """
import json, re, sys
import finemoe, finemoe.simulation.replay, finemoe.importers.gpt_oss
from finemoe.traces import RoutingTrace

def peak_megabytes():
    # not ru_maxrss, which begins with the peak of the process that started this one
    return int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read()).group(1)) * 1024 / 1e6


before = peak_megabytes()
options = {"history": RoutingTrace.load(sys.argv[2])} if sys.argv[3] == "finemoe" else {"eviction": sys.argv[4]}
report = finemoe.replay(RoutingTrace.load(sys.argv[1], mapped=True), sys.argv[3], 0.25, **options)
print(json.dumps({"grown_megabytes": round(peak_megabytes() - before), "rows": report.num_decode_steps}))
"""


@pytest.mark.parametrize("policy", BEFORE_MB)
def test_a_whole_process_takes_little(benchmark, policy):
    command = [sys.executable, "-c", WHOLE, str(SHIPPED), policy]
    run = lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: E731
    run()  # compiles
    peak_mb = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(peak_megabytes=round(peak_mb), before_megabytes=BEFORE_MB[policy])
    assert peak_mb <= 0.6 * BEFORE_MB[policy]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The trace some times over, by policy, and a few requests of it."""
    trace = load_gpt_oss(sample_path())
    folder = tmp_path_factory.mktemp("traces")
    trace.select(range(20)).save(folder / "small.trace")
    for policy, copies in COPIES.items():
        ids, probs = (np.concatenate([array] * copies) for array in (trace.expert_ids, trace.expert_probs))
        starts = [trace.offsets[:-1] + copy * trace.num_rows for copy in range(copies)]
        offsets = np.concatenate([*starts, [len(ids)]])
        RoutingTrace.from_topk(ids, probs, offsets, trace.num_experts).save(folder / f"{policy}.trace")
    return folder


@needs_gpt_oss
@pytest.mark.parametrize(("policy", "eviction"), [("on-demand", "lru"), ("on-demand", "belady"), ("finemoe", "finemoe")])
def test_memory_is_bounded_by_blocks(benchmark, files, policy, eviction):
    trace = files / f"{policy}.trace"
    command = [sys.executable, "-c", PROGRAM, str(trace), str(files / "small.trace"), policy, eviction]
    run = lambda: subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout  # noqa: E731
    found = json.loads(benchmark.pedantic(run, rounds=1))
    benchmark.extra_info.update(found, file_megabytes=round(trace.stat().st_size / 1e6))
