"""Time per token under every system, with expert memory of every size: virtual time on a described machine (DESIGN 6)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finemoe.advice.machine import Machine
from finemoe.advice.sample import STORE_CAPACITY
from finemoe.intervals import Interval, bootstrap_ratio
from finemoe.report import Report
from finemoe.simulation.comparison import system_reports
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.systems import System
from finemoe.traces import RoutingTrace

Reports = dict[tuple[str, int], Report]  # by (system, slots)


def timed_reports(
    served: RoutingTrace,
    known: Knowledge,
    machine: Machine,
    systems: Mapping[str, System],
    slots: Sequence[int],
    distance: int,
    seed: int = 0,
) -> Reports:
    """Replay every system at every size, whether it fits or not; systems that the trace cannot drive are left out.

    Args:
        known: what systems know beforehand. slots: sizes in experts, over all devices. distance: d, layers.
    """
    count = machine.size.num_layers * machine.size.num_experts
    of_share = {float(size / count): size for size in slots}
    timed: dict[str, Any] = {
        "hardware": machine.unbounded(),
        "model": machine.size,
        "arrangement": machine.arranged(served),
    }
    reports = system_reports(known, served, systems, list(of_share), distance, STORE_CAPACITY, seed, **timed)
    return {(name, of_share[share]): report for (name, share), report in reports.items()}


def time_rows(reports: Reports, machine: Machine, tokens_per_step: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    """The timed results as rows.

    Args:
        tokens_per_step: tokens of a decode step: 1, unless requests of a batch were recorded together.
    Returns:
        Rows (system, slots, expert_memory, bytes, fits, tpot_s, low, high, tokens_per_s, ttft_s, stalled, hit_rate, recall_at_k):
        expert_memory is a share of all experts, bytes are over all devices, fits is whether they have room in addition to the
        rest of the model; tpot_s is the mean time of a decode step with its 95 % interval over requests; ttft_s is the mean time
        of a prompt; stalled is the share of all time in which inference waited for weights.
    """
    count = machine.size.num_layers * machine.size.num_experts
    return [
        {
            "system": system,
            "slots": slots,
            "expert_memory": slots / count,
            "bytes": slots * machine.size.expert_bytes,
            "fits": machine.fits(slots),
            **_times(report, tokens_per_step, seed),
        }
        for (system, slots), report in reports.items()
    ]


def decode_seconds(report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Duration of each request's decode steps in seconds and their number, [R] each."""
    steps = np.array([request.num_decode_steps for request in report.requests], dtype=float)
    seconds = np.array([request.tpot_s for request in report.requests])
    return np.where(steps > 0, np.nan_to_num(seconds) * steps, 0.0), steps


def time_ratio(one: Report, other: Report, seed: int = 0) -> Interval:
    """Decode time of one report over that of another, for the same requests, with its 95 % interval over requests."""
    (seconds, steps), (others, _) = decode_seconds(one), decode_seconds(other)
    return bootstrap_ratio(seconds[steps > 0], others[steps > 0], seed=seed)


def _times(report: Report, tokens_per_step: float, seed: int) -> dict[str, float]:
    seconds, steps = decode_seconds(report)
    interval = bootstrap_ratio(seconds[steps > 0], steps[steps > 0], seed=seed)
    total_s = float(seconds.sum()) + report.num_prefills * float(np.nan_to_num(report.ttft_s))
    return {
        "tpot_s": report.tpot_s,
        "low": float(interval.low),
        "high": float(interval.high),
        "tokens_per_s": tokens_per_step / report.tpot_s,
        "ttft_s": report.ttft_s,
        "stalled": report.stall_s / total_s,
        "hit_rate": report.hit_rate,
        "recall_at_k": report.recall_at_k,
    }
