"""Similarity-aware expert selection (section 4.3, Eqs. 6-8)."""

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.maps.kernels import select_rows


def threshold_of(scores: np.ndarray) -> np.ndarray:
    """Eq. 6: delta = clip(1 - score, 0, 1); scores [B] in [-1, 1]."""
    return np.clip(1.0 - np.asarray(scores, dtype=np.float64), 0.0, 1.0)


def select_experts(probs: np.ndarray, thresholds: np.ndarray, top_k: int) -> np.ndarray:
    """Eqs. 7-8: the smallest set of most probable experts whose summed probability reaches the threshold, at least K.

    The expert that crosses the threshold is in the set. Beyond K, experts of probability 0 are never added (in top-k traces
    they are unknown, DESIGN 4). Equal probabilities: the lower expert first.

    Args:
        probs: [B, J] searched distributions; thresholds: [B] delta of each row; top_k: K.
    Returns:
        [B, J] bool.
    Raises:
        FinemoeError: K is not in 1..J.
    """
    if not 1 <= top_k <= probs.shape[1]:
        raise FinemoeError(f"top_k is {top_k}, must lie in 1..{probs.shape[1]}")
    selected = np.zeros(probs.shape, dtype=np.bool_)
    select_rows(np.ascontiguousarray(probs, dtype=np.float32), np.asarray(thresholds, dtype=np.float64), top_k, selected)
    return selected
