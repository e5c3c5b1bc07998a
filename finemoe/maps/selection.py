"""Similarity-aware expert selection (section 4.3, Eqs. 6-8)."""

import numpy as np

from finemoe.compiling import njit
from finemoe.errors import FinemoeError


def threshold_of(scores: np.ndarray) -> np.ndarray:
    """Eq. 6: delta = clip(1 - score, 0, 1); scores [B] in [-1, 1]."""
    return np.clip(1.0 - np.asarray(scores, dtype=np.float64), 0.0, 1.0)


def thresholds_of(scores: np.ndarray | None, num_rows: int) -> np.ndarray:
    """Eq. 6 for rows with scores [B]; for None, a threshold that K experts always reach."""
    return np.zeros(num_rows) if scores is None else threshold_of(scores)


def select_experts(probs: np.ndarray, thresholds: np.ndarray, top_k: int) -> np.ndarray:
    """Eqs. 7-8: the smallest set of most probable experts whose summed probability reaches the threshold, at least K.

    The expert that crosses the threshold is in the set. Beyond K, experts of probability 0 are never added (in top-k traces
    they are unknown, DESIGN 4). Of equal probabilities, the lower expert comes first.

    Args:
        probs: [B, J] searched distributions; thresholds: [B] delta of each row; top_k: K.
    Returns:
        [B, J] bool.
    Raises:
        FinemoeError: K is not in 1..J.
    """
    if not 1 <= top_k <= probs.shape[1]:
        raise FinemoeError(f"top_k is {top_k}; it must be in 1..{probs.shape[1]}")
    selected = np.zeros(probs.shape, dtype=np.bool_)
    select_rows(np.ascontiguousarray(probs, dtype=np.float32), np.asarray(thresholds, dtype=np.float64), top_k, selected)
    return selected


@njit(cache=True, nogil=True)
def select_rows(probs, thresholds, top_k, selected):  # type: ignore[no-untyped-def]
    """Eqs. 7-8 for every row: probs [B, J], thresholds [B] -> selected [B, J] bool (all False on entry)."""
    num_experts = probs.shape[1]
    for row in range(probs.shape[0]):
        total = np.float64(0.0)  # a sum with float32 stays float64, compiled or not
        for count in range(num_experts):
            best = -1
            for j in range(num_experts):
                if not selected[row, j] and (best < 0 or probs[row, j] > probs[row, best]):
                    best = j
            if count >= top_k and (total >= thresholds[row] or probs[row, best] <= 0):
                break
            selected[row, best] = True
            total += probs[row, best]
