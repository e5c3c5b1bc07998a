"""Noise of measured times: how far repetitions lie apart, how much other work the machine does, what can be told in spite of it.

Everything is measured in rounds, one after the other over all cells: what else the machine does meets each cell alike, and shows,
as a spread over rounds or as processor time that other work took.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

BAR = 0.10  # what a prediction may be off, and what noise may be for anything to be told
WITHIN, OUTSIDE, FASTER, SLOWER, NOT_DECIDED = "within", "outside", "faster", "slower", "not decided"
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


def judged_predictions(rounds: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """What rounds of predicting and measuring tell, cell by cell.

    Args:
        rounds: rows (*by, predicted_tpot_s, measured_tpot_s, busy, and other numbers), one for each cell and round.
        by: what names a cell.
    Returns:
        One row a cell: medians over rounds of its numbers, error (of the medians, relative to what was measured), noise (the
        greatest of both spreads and of the median busy share), num_rounds, and verdict: WITHIN or OUTSIDE the BAR if it is so in
        every round and the noise is no greater than the BAR, else NOT_DECIDED; OUTSIDE also where the error exceeds the BAR by
        more than the noise, so that no wrong prediction hides behind a busy machine.
    """
    rows = []
    for key, part in rounds.groupby(list(by), sort=False):
        numbers = part.drop(columns=list(by)).median().to_dict()
        noise = _noise(part.busy, part.predicted_tpot_s, part.measured_tpot_s)
        is_within = (part.predicted_tpot_s / part.measured_tpot_s - 1).abs() <= BAR
        error = numbers["predicted_tpot_s"] / numbers["measured_tpot_s"] - 1
        verdict = WITHIN if is_within.all() else OUTSIDE if not is_within.any() else NOT_DECIDED
        is_told = noise <= BAR or (verdict == OUTSIDE and abs(error) > BAR + noise)
        rows.append(
            dict(zip(by, key, strict=True))
            | numbers
            | {
                "error": error,
                "noise": noise,
                "num_rounds": len(part),
                "verdict": verdict if is_told else NOT_DECIDED,
            }
        )
    return pd.DataFrame(rows)


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


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(length_s: float) -> tuple[float, float]:
    """Seconds of processor time that this thread got, and seconds that passed."""
    block = bytes(1 << 20)  # hashed without Python's lock
    begin_s, had_s = time.perf_counter(), time.thread_time()
    while time.perf_counter() - begin_s < length_s:
        hashlib.sha256(block).digest()
    return time.thread_time() - had_s, time.perf_counter() - begin_s
