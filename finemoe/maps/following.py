"""A gate's whole search and selection in one compiled call: in an engine each call from Python costs as much as a search."""

import numpy as np

from finemoe.compiling import njit
from finemoe.maps import kernels, selection
from finemoe.maps.kernels import advance_prefix, gather_rows, nearest_neighbours
from finemoe.maps.selection import select_rows
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, kernels.__file__, selection.__file__)


@njit(cache=True, nogil=True)
def follow_gate(codes, target, inverse_norms, probs, dots, squares, top_k, is_similarity_aware):  # type: ignore[no-untyped-def]
    """A layer extends the prefix, the nearest map says what the target layer is expected to do, and experts are selected of that.

    Args:
        codes, target: [J, capacity] of the layer and of the target. inverse_norms: [C] of the layer. probs: [B, J].
        dots, squares: [B, C] and [B], extended in place. top_k: K.
        is_similarity_aware: whether a poor match selects more (Eq. 6).
    Returns:
        (probabilities [J] float32, the maximum over rows; ids of the experts that any row selects, ascending).
    """
    num_rows, num_experts = probs.shape
    neighbours, scores = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.float32)
    rows, selected = np.empty((num_rows, num_experts), dtype=np.float32), np.zeros((num_rows, num_experts), dtype=np.bool_)
    advance_prefix(codes, probs, dots, squares)
    nearest_neighbours(dots, inverse_norms, squares, neighbours, scores)
    gather_rows(target, neighbours, rows)
    thresholds = np.zeros(num_rows)
    if is_similarity_aware:
        for row in range(num_rows):
            thresholds[row] = min(max(1.0 - np.float64(scores[row]), 0.0), 1.0)
    select_rows(rows, thresholds, top_k, selected)
    return _united(rows, selected)


@njit(cache=True, nogil=True)
def _united(rows, selected):  # type: ignore[no-untyped-def]
    probabilities, experts, n = np.empty(rows.shape[1], dtype=np.float32), np.empty(rows.shape[1], dtype=np.int64), 0
    for expert in range(rows.shape[1]):
        probabilities[expert], is_selected = rows[0, expert], selected[0, expert]
        for row in range(1, rows.shape[0]):
            probabilities[expert] = max(probabilities[expert], rows[row, expert])
            is_selected |= selected[row, expert]
        if is_selected:
            experts[n] = expert
            n += 1
    return probabilities, experts[:n]
