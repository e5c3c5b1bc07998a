"""Expert maps: one iteration's gate distributions over all experts, layer by layer (section 4.1).

A map is an array [L, J]. A row is the gate's distribution over all J routed experts *before* top-K and before any
renormalisation, so it sums to 1: the softmax of the logits, rearranged to rank as the router selects (`ranking`). Several maps
stack to [n, L, J]. A map does not include shared experts.
"""

import numpy as np

from finemoe.compiling import njit
from finemoe.errors import EngineError, FinemoeError

_SLACK = 1e-2


def from_logits(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float32: gate logits [..., J] to map rows [..., J]."""
    logits = np.asarray(logits, dtype=np.float32)
    powers = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))  # runs in every layer; methods take twice as long
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def require_distribution(probs: np.ndarray, layer: int) -> None:
    """Refuse a gate output that is not a distribution, so that NaN from a router is never ignored.

    Args:
        probs: [B, J]; layer: index of the MoE layer, for the message.
    Raises:
        EngineError: some row is NaN or does not sum to 1.
    """
    if not are_distributions(probs):
        raise no_distribution(probs, layer)


def no_distribution(probs: np.ndarray, layer: int) -> EngineError:
    """The error for such a gate output."""
    worst = probs.sum(axis=-1).min()
    return EngineError(f"the router of MoE layer {layer} emitted NaN or no distribution (row sum {worst:.3g})")


@njit(cache=True, nogil=True)
def are_distributions(probs):  # type: ignore[no-untyped-def]
    """Whether every row [B, J] sums to 1 within one in a hundred; NaN does not."""
    for row in range(probs.shape[0]):
        total = 0.0
        for value in probs[row]:
            total += value
        if not abs(total - 1.0) < _SLACK:
            return False
    return True


def activation_counts(maps: np.ndarray, top_k: int) -> np.ndarray:
    """Coarse counts [L, J] that the maps [n, L, J] generalise: the top K of every row, summed over iterations (4.1)."""
    if not 1 <= top_k <= maps.shape[-1]:
        raise FinemoeError(f"top_k is {top_k}; it must be in 1..{maps.shape[-1]}")
    activated = np.argsort(-maps, axis=-1, kind="stable")[..., :top_k]
    counts = np.zeros(maps.shape, dtype=np.int64)
    np.put_along_axis(counts, activated, 1, axis=-1)
    return counts.sum(axis=0)


def keep_top(probs: np.ndarray, count: int) -> np.ndarray:
    """Keep the `count` largest entries of each row [..., J], zeros elsewhere; of equal entries the lower id is kept."""
    if count >= probs.shape[-1]:
        return probs
    ids = top_ids(probs, count)
    kept = np.zeros_like(probs)
    np.put_along_axis(kept, ids, np.take_along_axis(probs, ids, axis=-1), axis=-1)
    return kept


def top_ids(probs: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest entries along the last axis, by descending value, equal ones by id."""
    return np.argsort(-probs, axis=-1, kind="stable")[..., :count].copy()  # a view would keep the ids of all entries alive


def lookahead_width(num_experts: int, top_k: int) -> int:
    """Number of experts recorded of a distribution from a router applied ahead: twice those that a token activates."""
    return min(num_experts, 2 * top_k)
