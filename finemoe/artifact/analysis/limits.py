"""Cases in which a formula gives the result of a replay in virtual time: the simulator against arithmetic
(validate_simulator)."""

from dataclasses import replace

import numpy as np
import pandas as pd

from finemoe.report import Report
from finemoe.simulation.cost import size_of
from finemoe.simulation.events import demanded_sets, iteration_blocks
from finemoe.simulation.replay import replay
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

_TESTBED = "rtx3090"  # a single device, so that loads are sequential


def analytical_checks(trace: RoutingTrace) -> pd.DataFrame:
    """Replays of a trace on one device in limiting cases.

    Returns:
        Rows (check, expected, simulated, error), with times in seconds over the whole trace; the error is relative (absolute if
        the expected value is 0).
    """
    testbed = replace(Testbed.load(_TESTBED), memory_bytes=1e15)  # enough for every case
    resident = replay(trace, "no-offload", 1.0, testbed)
    demand = replay(trace, "on-demand", 0.25, testbed)
    slow = replace(testbed, link_bytes_per_s=testbed.link_bytes_per_s / 1e6, host_bytes_per_s=1e15)
    fast = replace(testbed, link_bytes_per_s=1e30, host_bytes_per_s=1e30, link_latency_s=0.0, chunk_overhead_s=0.0)
    expert_bytes = size_of(None, trace.num_layers, trace.num_experts, trace.top_k).expert_bytes
    crawling, one = replay(trace, "on-demand", 0.25, slow), replay(trace, "on-demand", expert_bytes, testbed)
    accesses = sum(len(demanded_sets(trace, block)[1]) for block in iteration_blocks(trace, 4096))
    everything = replay(trace, "on-demand", 1.0, testbed)
    crawl_s = crawling.demand_bytes / slow.link_bytes_per_s
    unhindered = {name: replay(trace, name, 0.25, fast) for name in ("on-demand", "finemoe")}
    resident_s = _time(resident)
    rows = [
        ("all fit, on demand: every expert is loaded once", _num_used(trace), everything.demand_bytes / expert_bytes),
        ("endless bandwidth, on demand", resident_s, _time(unhindered["on-demand"])),
        ("endless bandwidth, FineMoE", resident_s, _time(unhindered["finemoe"])),
        ("hardly any bandwidth: loads x bytes / bandwidth", crawl_s, _time(crawling)),
        ("one expert's slot: nearly every access is a load", accesses - _repeats(trace), one.demand_bytes / expert_bytes),
        ("time is work and waiting", resident_s + demand.stall_s, _time(demand)),
        ("bytes are misses times the expert's", demand.misses * expert_bytes, demand.demand_bytes),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["check", "expected", "simulated"])
    return table.assign(error=(table.simulated - table.expected) / table.expected.where(table.expected != 0, 1.0))


def _num_used(trace: RoutingTrace) -> int:
    """Number of distinct experts that a trace demands."""
    layers = np.arange(trace.num_layers)[None, :, None]
    return len(np.unique(layers * trace.num_experts + trace.expert_ids.astype(np.int64)))


def _time(report: Report) -> float:
    """Time from the start of the first iteration to the end of the last one, in seconds."""
    return float(np.nansum([(one.ttft_s, one.tpot_s * one.num_decode_steps) for one in report.requests]))


def _repeats(trace: RoutingTrace) -> int:
    """Accesses that find the single slot's expert: the last of a set in ascending order, if it is the first of the next set."""
    previous, count = -1, 0
    for block in iteration_blocks(trace, 4096):
        begins, demanded = demanded_sets(trace, block)
        for event, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
            flat = event % trace.num_layers * trace.num_experts + demanded[begin:end]
            count += previous in flat.tolist()
            previous = int(flat[-1])
    return count
