"""Noise of measured times: how far repetitions lie apart, how much other work the machine does, what can be told in spite of it.

Everything is measured in rounds, one after the other over all cells: what else the machine does meets each cell alike, and shows,
as a spread over rounds or as processor time that other work took.
"""

import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

BAR = 0.10  # what a prediction may be off, and what noise may be for anything to be told
WORST, LEAST_SHARE = 0.15, 0.95  # what a single prediction may be off; how many must be within the bar
WITHIN, OUTSIDE, FASTER, SLOWER, NOT_DECIDED = "within", "outside", "faster", "slower", "not decided"
_LEVEL = 0.05  # of the cases in which a median may lie outside its interval
_PROBE_S = 0.03
_MOST_CORES = 2  # inference and a link or matcher beside it: what the engine uses at a time


def busy_share(length_s: float = _PROBE_S) -> float:
    """The share of two cores (of one, where there is no second) that other work takes right now, in [0, 1].

    Threads ask for all they can get for so long, and are told how much they got.
    """
    num_threads = min(_MOST_CORES, _num_cores())
    with ThreadPoolExecutor(num_threads) as pool:
        got, lasted = np.array(list(pool.map(_work, [length_s] * num_threads))).sum(axis=0)
    return float(np.clip(1 - got / lasted, 0, 1))


def spread(values: Sequence[float] | np.ndarray) -> float:
    """How far repetitions of one measurement lie apart: (greatest - least) / median; NaN for a single one, which cannot tell."""
    values = np.asarray(values, dtype=float)
    return float(np.ptp(values) / np.median(values)) if len(values) > 1 else float("nan")


def median_interval(values: "Sequence[float] | np.ndarray | pd.Series[float]") -> tuple[float, float]:
    """The 95 % interval of a median that the order of the values gives, whatever they are drawn from; NaN for fewer than six,
    which have none."""
    ordered, rank, outside = np.sort(np.asarray(values, dtype=float)), 0, 0.0
    while (outside := outside + 2 * math.comb(len(ordered), rank) / 2 ** len(ordered)) <= _LEVEL:
        rank += 1
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (float("nan"), float("nan"))


def judged_predictions(rounds: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """What rounds of predicting and measuring tell, cell by cell.

    Args:
        rounds: rows (*by, predicted_tpot_s, measured_tpot_s, busy, and other numbers), one for each cell and round; where
            are_counts_equal is among them, it says whether what depends on no time was predicted exactly.
        by: what names a cell.
    Returns:
        One row a cell: medians over rounds of its numbers, error (of the medians, relative to what was measured), noise (the
        greatest of both spreads and of the median busy share), num_rounds, and verdict: WITHIN or OUTSIDE the BAR if it is so in
        every round and the noise is no greater than the BAR, else NOT_DECIDED; OUTSIDE also where the error exceeds the BAR by
        more than the noise, so that no wrong prediction hides behind a busy machine. From six rounds on the errors' median has an
        interval, which narrows with more of them: then that must lie within or outside the BAR, and half its width stands for
        both spreads, so that a noisy machine tells in the end, too. Unequal counts are OUTSIDE, for they have no noise.
    """
    rows = []
    for key, part in rounds.groupby(list(by), sort=False):
        numbers = part.drop(columns=list(by)).median().to_dict()
        verdict, noise = _verdict(part)
        error = numbers["predicted_tpot_s"] / numbers["measured_tpot_s"] - 1
        is_told = noise <= BAR or (verdict == OUTSIDE and abs(error) > BAR + noise)
        is_exact = "are_counts_equal" not in part or part.are_counts_equal.all()
        rows.append(
            dict(zip(by, key, strict=True))
            | numbers
            | {
                "error": error,
                "noise": noise,
                "num_rounds": len(part),
                "verdict": OUTSIDE if not is_exact else verdict if is_told else NOT_DECIDED,
            }
        )
    return pd.DataFrame(rows)


def judged_groups(judged: pd.DataFrame, by: str) -> pd.DataFrame:
    """What is off in all cells of a group alike, such as of one policy: noise of single cells hides it in none.

    Args:
        judged: cells, as from `judged_predictions`. by: what names a group.
    Returns:
        One row a group: error (median over its cells), low, high (its 95 % interval), busy (median), num_cells, and verdict:
        WITHIN if the interval is within the BAR and busy no greater than it, OUTSIDE if all of the interval exceeds the BAR by
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
    """What all cells say together, in words that begin with the verdict.

    WITHIN if LEAST_SHARE of all cells are told to be within the BAR and no error exceeds WORST; OUTSIDE if a group is, or too
    many cells are, or one exceeds WORST by more than its noise; else NOT_DECIDED: what could not be told shows nothing.

    Args:
        judged, groups: as from `judged_predictions` and `judged_groups`.
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
        f"{verdict}: {within} of {count} cells are told to be within {BAR:.0%} (at least {LEAST_SHARE:.0%} should be), the "
        f"median error of {int((errors <= BAR).sum())} is; the greatest is {errors.max():.0%} (at most {WORST:.0%} should be)"
    )


def judged_pairs(rounds: pd.DataFrame, by: Sequence[str], ours: str, theirs: str) -> pd.DataFrame:
    """Whether one policy's TPOT is below another's, cell by cell.

    Args:
        rounds: rows (*by, policy, round, tpot_s, busy); several of a cell, policy and round are averaged. by: what names a cell.
    Returns:
        One row a cell: ratio (median over rounds of ours / theirs in the same round), noise (the greatest of both policies'
        spreads over rounds and of the median busy share), num_rounds, and verdict: FASTER or SLOWER if ours is so in every round
        and by more than the noise, else NOT_DECIDED.
    """
    rows = []
    for key, part in rounds.groupby(list(by), sort=False):
        means = part.pivot_table(index="round", columns="policy", values="tpot_s")
        ratios = means[ours] / means[theirs]
        ratio, noise = float(ratios.median()), _noise(part.busy, means[ours], means[theirs])
        is_told = abs(ratio - 1) > noise and ((ratios < 1).all() or (ratios > 1).all())
        verdict = (FASTER if ratio < 1 else SLOWER) if is_told else NOT_DECIDED
        rows.append(
            dict(zip(by, key, strict=True)) | {"ratio": ratio, "noise": noise, "num_rounds": len(ratios), "verdict": verdict}
        )
    return pd.DataFrame(rows)


def in_words(judged: pd.DataFrame, *verdicts: str) -> str:
    """How many cells got which verdict, and how great the noise was: what stands above a figure and in a text.

    Args:
        judged: with the columns noise and verdict. verdicts: those that a cell may get, beside NOT_DECIDED.
    """
    counts = ", ".join(f"{name} {int((judged.verdict == name).sum())} of {len(judged)}" for name in (*verdicts, NOT_DECIDED))
    median = float(np.median(judged.noise))
    if np.isnan(median):
        return f"{counts} (one round tells no noise)"
    kind = "noisy" if median > BAR else "quiet"  # by other work or by itself: spreads are in it, too
    return f"{counts} ({kind}: noise {median:.0%} in the median, {judged.noise.max():.0%} at most)"


def _noise(busy: "pd.Series[float]", *times_s: "pd.Series[float]") -> float:
    return float(np.max([busy.median(), *(spread(values.to_numpy()) for values in times_s)]))  # NaN where one cannot tell


def _verdict(part: pd.DataFrame) -> tuple[str, float]:
    """What a cell's rounds say, before noise is considered, and the noise."""
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
    """Seconds of processor time that this thread got, and seconds that passed."""
    block = bytes(1 << 20)  # hashed without Python's lock
    begin_s, had_s = time.perf_counter(), time.thread_time()
    while time.perf_counter() - begin_s < length_s:
        hashlib.sha256(block).digest()
    return time.thread_time() - had_s, time.perf_counter() - begin_s
