"""Times of systems in virtual time, with intervals over requests."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finemoe.intervals import Interval, bootstrap_ratio
from finemoe.report import Report


def time_columns(reports: Mapping[tuple[str, float], Report], seed: int = 0) -> list[dict[str, Any]]:
    """Times of each report, in the order of `comparison_rows`.

    Returns:
        Rows (ttft_s, ttft_low, ttft_high, tpot_s, tpot_low, tpot_high, stall_s, expert_memory_bytes). TTFT is a mean over
        prefills, TPOT over decode steps; the 95 % intervals resample requests and are NaN where only one request has the time.
    """
    return [_times(report, seed) for report in reports.values()]


def _times(report: Report, seed: int) -> dict[str, Any]:
    prefills = np.array([(one.ttft_s, 1.0) for one in report.requests])
    steps = np.array([(one.tpot_s * one.num_decode_steps, one.num_decode_steps) for one in report.requests])
    found: dict[str, Any] = {}
    for name, pairs in (("ttft", prefills), ("tpot", steps)):
        value, low, high = _mean(pairs, seed)
        found |= {f"{name}_s": float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found | {"stall_s": report.stall_s, "expert_memory_bytes": report.expert_memory_bytes}


def _mean(pairs: np.ndarray, seed: int) -> Interval:
    """Of (sum, count) by request; requests without the time are left out."""
    known = pairs[~np.isnan(pairs).any(axis=1) & (pairs[:, 1] > 0)]
    if not len(known):
        return Interval(*np.full(3, np.nan))
    return bootstrap_ratio(known[:, 0], known[:, 1], seed=seed)
