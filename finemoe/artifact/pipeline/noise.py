"""Noise of measured times: the spread of repetitions, the load from other work, and what can be concluded despite both.

Everything is measured in rounds over all cells. Other work on the machine therefore affects all cells alike, and shows as a
spread over rounds or as processor time taken by other processes.
"""

import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

BAR = 0.10  # largest tolerated prediction error, and largest noise at which a cell can be decided
WORST, LEAST_SHARE = 0.15, 0.95  # largest error of any single prediction; smallest share of cells within the bar
WITHIN, OUTSIDE, FASTER, SLOWER, NOT_DECIDED = "within", "outside", "faster", "slower", "not decided"
_LEVEL = 0.05  # probability that a median is outside its interval
_PROBE_S = 0.03
_MOST_CORES = 2  # the engine uses two at a time: inference, and a link or a matcher


def busy_share(length_s: float = _PROBE_S) -> float:
    """The share of two cores (one if there is only one) that other work takes right now, in [0, 1].

    Threads run at full load for `length_s` seconds, and their processor time is compared with the elapsed time.
    """
    num_threads = min(_MOST_CORES, _num_cores())
    with ThreadPoolExecutor(num_threads) as pool:
        got, lasted = np.array(list(pool.map(_work, [length_s] * num_threads))).sum(axis=0)
    return float(np.clip(1 - got / lasted, 0, 1))


def spread(values: Sequence[float] | np.ndarray) -> float:
    """Spread of repeated measurements: (greatest - least) / median; NaN for a single one."""
    values = np.asarray(values, dtype=float)
    return float(np.ptp(values) / np.median(values)) if len(values) > 1 else float("nan")


def median_interval(values: "Sequence[float] | np.ndarray | pd.Series[float]") -> tuple[float, float]:
    """Distribution-free 95 % interval of a median, from order statistics; NaN for fewer than six values."""
    ordered, rank, outside = np.sort(np.asarray(values, dtype=float)), 0, 0.0
    while (outside := outside + 2 * math.comb(len(ordered), rank) / 2 ** len(ordered)) <= _LEVEL:
        rank += 1
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (float("nan"), float("nan"))


def judged_predictions(rounds: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Judge predictions against measurements, cell by cell.

    Args:
        rounds: rows (*by, predicted_tpot_s, measured_tpot_s, busy, and other numbers), one for each cell and round. The optional
            column are_counts_equal states whether everything that does not depend on time was predicted exactly.
        by: columns that identify a cell.
    Returns:
        One row per cell: the medians of its numbers over rounds; error (of the medians, relative to the measurement); noise (the
        largest of both spreads and the median busy share); num_rounds; and verdict. The verdict is WITHIN or OUTSIDE the BAR if
        this holds in every round and the noise is at most the BAR, else NOT_DECIDED. It is also OUTSIDE if the error exceeds the
        BAR by more than the noise, so a busy machine cannot hide a wrong prediction. With six rounds or more, the median error
        has an interval that narrows with every round. The interval must then be within or outside the BAR, and half its width
        replaces both spreads, so a noisy machine also reaches a verdict eventually. Unequal counts are OUTSIDE, because counts
        have no noise.
    """
    rows = []
    for key, part in rounds.groupby(list(by), sort=False):
        numbers = part.drop(columns=list(by)).median().to_dict()
        verdict, noise = _verdict(part)
        error = numbers["predicted_tpot_s"] / numbers["measured_tpot_s"] - 1
        is_decided = noise <= BAR or (verdict == OUTSIDE and abs(error) > BAR + noise)
        is_exact = "are_counts_equal" not in part or part.are_counts_equal.all()
        rows.append(
            dict(zip(by, key, strict=True))
            | numbers
            | {
                "error": error,
                "noise": noise,
                "num_rounds": len(part),
                "verdict": OUTSIDE if not is_exact else verdict if is_decided else NOT_DECIDED,
            }
        )
    return pd.DataFrame(rows)


def judged_groups(judged: pd.DataFrame, by: str) -> pd.DataFrame:
    """Judge errors shared by all cells of a group, such as one policy; the noise of single cells cannot hide them.

    Args:
        judged: cells, as returned by `judged_predictions`.
        by: column that identifies a group.
    Returns:
        One row per group: error (median over its cells), low and high (its 95 % interval), busy (median), num_cells, and verdict:
        WITHIN if the interval is within the BAR and busy is at most the BAR, OUTSIDE if the whole interval exceeds the BAR by
        more than busy, else NOT_DECIDED.
    """
    rows = []
    for name, cells in judged.groupby(by, sort=False):
        (low, high), busy = median_interval(cells.error), float(cells.busy.median())
        is_within, is_outside = busy <= BAR and max(-low, high) <= BAR, max(low, -high) > BAR + busy
        verdict = WITHIN if is_within else OUTSIDE if is_outside else NOT_DECIDED
        found = {by: name, "error": float(cells.error.median()), "low": low, "high": high, "busy": busy}
        rows.append(found | {"num_cells": len(cells), "verdict": verdict})
    return pd.DataFrame(rows)


def judged_as_a_whole(judged: pd.DataFrame, groups: pd.DataFrame) -> str:
    """The verdict over all cells, as a sentence that begins with the verdict.

    WITHIN if LEAST_SHARE of all cells are WITHIN and no error exceeds WORST. OUTSIDE if a group is OUTSIDE, if too many cells
    are, or if an error exceeds WORST by more than its noise. Otherwise NOT_DECIDED.

    Args:
        judged, groups: as returned by `judged_predictions` and `judged_groups`.
    """
    errors, count = judged.error.abs(), len(judged)
    within, outside = int((judged.verdict == WITHIN).sum()), int((judged.verdict == OUTSIDE).sum())
    is_far_off = bool((errors > WORST + judged.noise).any())
    verdict = NOT_DECIDED
    if is_far_off or outside > (1 - LEAST_SHARE) * count or (groups.verdict == OUTSIDE).any():
        verdict = OUTSIDE
    elif within >= LEAST_SHARE * count and errors.max() <= WORST:
        verdict = WITHIN
    return (
        f"{verdict}: {within} of {count} cells are shown to be within {BAR:.0%} (target: at least {LEAST_SHARE:.0%}); the median "
        f"error of {int((errors <= BAR).sum())} cells is; the largest error is {errors.max():.0%} (target: at most {WORST:.0%})"
    )


def judged_pairs(rounds: pd.DataFrame, by: Sequence[str], ours: str, theirs: str) -> pd.DataFrame:
    """Judge whether one policy's TPOT is below another's, cell by cell.

    Args:
        rounds: rows (*by, policy, round, tpot_s, busy); several rows of one cell, policy and round are averaged.
        by: columns that identify a cell.
        ours, theirs: the two policies.
    Returns:
        One row per cell: ratio (median over rounds of ours / theirs in the same round); noise (the largest of both policies'
        spreads over rounds and of the median busy share); num_rounds; and verdict: FASTER or SLOWER if this holds in every round
        and by more than the noise, else NOT_DECIDED.
    """
    rows = []
    for key, part in rounds.groupby(list(by), sort=False):
        means = part.pivot_table(index="round", columns="policy", values="tpot_s")
        ratios = means[ours] / means[theirs]
        ratio, noise = float(ratios.median()), _noise(part.busy, means[ours], means[theirs])
        is_decided = abs(ratio - 1) > noise and ((ratios < 1).all() or (ratios > 1).all())
        verdict = (FASTER if ratio < 1 else SLOWER) if is_decided else NOT_DECIDED
        rows.append(
            dict(zip(by, key, strict=True)) | {"ratio": ratio, "noise": noise, "num_rounds": len(ratios), "verdict": verdict}
        )
    return pd.DataFrame(rows)


def in_words(judged: pd.DataFrame, *verdicts: str) -> str:
    """The number of cells with each verdict and the size of the noise, for the title of a figure and for text.

    Args:
        judged: a table with the columns noise and verdict.
        verdicts: the verdicts to count in addition to NOT_DECIDED.
    """
    counts = ", ".join(f"{name} {int((judged.verdict == name).sum())} of {len(judged)}" for name in (*verdicts, NOT_DECIDED))
    median = float(np.median(judged.noise))
    if np.isnan(median):
        return f"{counts} (noise unknown from a single round)"
    kind = "noisy" if median > BAR else "quiet"  # because of other work or its own variation: spreads include both
    return f"{counts} ({kind}: noise {median:.0%} in the median, {judged.noise.max():.0%} at most)"


def _noise(busy: "pd.Series[float]", *times_s: "pd.Series[float]") -> float:
    return float(np.max([busy.median(), *(spread(values.to_numpy()) for values in times_s)]))  # NaN where one cannot tell


def _verdict(part: pd.DataFrame) -> tuple[str, float]:
    """A cell's verdict before noise is considered, and its noise."""
    errors, busy = part.predicted_tpot_s / part.measured_tpot_s - 1, float(part.busy.median())
    low, high = median_interval(errors)
    if np.isnan(low):
        is_within, noise = errors.abs() <= BAR, _noise(part.busy, part.predicted_tpot_s, part.measured_tpot_s)
        return WITHIN if is_within.all() else OUTSIDE if not is_within.any() else NOT_DECIDED, noise
    verdict = WITHIN if max(-low, high) <= BAR else OUTSIDE if max(low, -high) > BAR else NOT_DECIDED
    return verdict, max(busy, (high - low) / 2)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(length_s: float) -> tuple[float, float]:
    """Processor time that this thread got, and elapsed time, both in seconds."""
    block = bytes(1 << 20)  # hashing releases Python's global lock
    begin_s, had_s = time.perf_counter(), time.thread_time()
    while time.perf_counter() - begin_s < length_s:
        hashlib.sha256(block).digest()
    return time.thread_time() - had_s, time.perf_counter() - begin_s
