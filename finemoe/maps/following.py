"""Trajectory search over one iteration (section 4.2.2, Eq. 5): each gate predicts a layer ahead.

Each gate is one compiled call that takes a table of addresses: in an engine, every array passed from Python costs as much as a
short search.
"""

import functools

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.errors import FinemoeError
from finemoe.maps import kernels, selection
from finemoe.maps.kernels import advance_prefix, gather_rows, nearest_neighbours
from finemoe.maps.selection import select_rows
from finemoe.maps.store import ExpertMapStore
from finemoe.native import float32_at, function_addresses, uint16_at
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, native.compiled.__file__, kernels.__file__, selection.__file__)
OUT_OF_PLACE = -2  # returned instead of a number of predictions if a gate does not belong to this iteration
# Layout of the table. Addresses of: the store's codes [L, J, capacity] and norms [L, capacity]; dots [B, C] and squares [B],
# which are extended in place; the gates seen so far [L, B, J], 0 if they are not kept.
_CODES, _NORMS, _DOTS, _SQUARES, _GATES = range(5)
# Sizes; d, K, whether a poor match selects more (Eq. 6); and the number of gates seen.
_NUM_LAYERS, _NUM_EXPERTS, _CAPACITY, _NUM_RECORDS, _NUM_ROWS, _DISTANCE, _TOP_K, _IS_SIMILARITY_AWARE, _NUM_HEARD = range(5, 14)


class Following:
    """One iteration over a store that does not change meanwhile.

    Args:
        store: the records to search; may be empty.
        num_rows: B, rows of the iteration (one per sequence in decode, one per token in prefill).
        distance: d, how many layers ahead a gate predicts. top_k: K.
        is_similarity_aware: whether a poor match selects more than K experts (Eqs. 6-8).
        keeps_gates: whether to keep the gates for use after the iteration.
    Attributes:
        table: [n] int64, the argument of `follow_gate`; valid as long as this object exists.
    """

    def __init__(
        self, store: ExpertMapStore, num_rows: int, distance: int, top_k: int, is_similarity_aware: bool, keeps_gates: bool
    ) -> None:
        self.store, self._shape = store, (num_rows, store.num_experts)
        self._dots, self._squares = np.zeros((num_rows, len(store)), dtype=np.float32), np.zeros(num_rows, dtype=np.float32)
        self._gates = np.empty((store.num_layers if keeps_gates else 0, *self._shape), dtype=np.float32)
        arrays = store.map_codes, store.inverse_prefix_norms, self._dots, self._squares
        self.table = np.array(
            (
                *(array.ctypes.data for array in arrays),
                self._gates.ctypes.data if keeps_gates else 0,
                store.num_layers,
                store.num_experts,
                store.capacity,
                len(store),
                num_rows,
                distance,
                top_k,
                is_similarity_aware,
                0,
            ),
            dtype=np.int64,
        )

    def hear(self, layer: int, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Take in the gate of a layer, [B, J]; layers come in order.

        Returns:
            (probabilities [J] float32, the maximum over rows; ids of the experts that any row selects, ascending) for the layer d
            ahead, or None if there is no such layer, or no record.
        Raises:
            FinemoeError: it is not this layer's turn, or the shape is wrong.
        """
        probabilities, experts = np.empty((1, self._shape[1]), dtype=np.float32), np.empty((1, self._shape[1]), dtype=np.int64)
        layers, counts, selected = (
            np.empty(1, dtype=np.int64),
            np.empty(1, dtype=np.int64),
            np.empty((len(probs), 0), dtype=np.int64),
        )
        gate = np.ascontiguousarray(probs, dtype=np.float32)
        found = follow_gate(self.table, layer, gate, selected, layers, probabilities, counts, experts)
        if found == OUT_OF_PLACE:
            raise FinemoeError(
                f"the gate of layer {layer} came after {self.table[_NUM_HEARD]} others, with shape {probs.shape}; gates must "
                f"come in order, each of {self._shape} rows and experts"
            )
        return (probabilities[0], experts[0, : counts[0]]) if found else None

    @property
    def maps(self) -> np.ndarray | None:
        """The iteration's maps [B, L, J], float32, after all gates, if they are kept; otherwise None."""
        is_whole = len(self._gates) > 0 and self.table[_NUM_HEARD] == len(self._gates)
        return np.ascontiguousarray(self._gates.transpose(1, 0, 2)) if is_whole else None


@njit(cache=True, nogil=True)
def follow_gate(table, layer, probs, selected, layers, probabilities, counts, experts):  # type: ignore[no-untyped-def]
    """Extend the prefix by a layer; the nearest map predicts the layer d ahead, from which experts are selected.

    Args:
        table: see Following. probs: [B, J] float32 of the layer; selected: not used.
        layers, probabilities, counts, experts: see `GateStep`; only the first entry is filled in.
    Returns:
        1, or 0 if nothing is predicted, or OUT_OF_PLACE.
    """
    num_rows, num_experts, capacity, size = table[_NUM_ROWS], table[_NUM_EXPERTS], table[_CAPACITY], table[_NUM_RECORDS]
    if layer != table[_NUM_HEARD] or layer >= table[_NUM_LAYERS] or probs.shape != (num_rows, num_experts):
        return np.int64(OUT_OF_PLACE)
    table[_NUM_HEARD] += 1
    if table[_GATES]:
        float32_at(table[_GATES] + 4 * layer * probs.size, probs.size)[:] = probs.reshape(probs.size)
    target = layer + table[_DISTANCE]
    if target >= table[_NUM_LAYERS] or not size:
        return np.int64(0)
    dots, squares = float32_at(table[_DOTS], num_rows * size).reshape(num_rows, size), float32_at(table[_SQUARES], num_rows)
    neighbours, scores = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.float32)
    advance_prefix(_codes_at(table, layer), probs, dots, squares)
    nearest_neighbours(dots, float32_at(table[_NORMS] + 4 * layer * capacity, size), squares, neighbours, scores)
    rows, wanted = np.empty(probs.shape, dtype=np.float32), np.zeros(probs.shape, dtype=np.bool_)
    gather_rows(_codes_at(table, target), neighbours, rows)
    thresholds = np.zeros(num_rows)
    if table[_IS_SIMILARITY_AWARE]:
        for row in range(num_rows):
            thresholds[row] = min(max(1.0 - np.float64(scores[row]), 0.0), 1.0)
    select_rows(rows, thresholds, table[_TOP_K], wanted)
    layers[0], counts[0] = target, _unite(rows, wanted, probabilities[0], experts[0])
    return np.int64(1)


@njit(cache=True, nogil=True)
def _codes_at(table, layer):  # type: ignore[no-untyped-def]
    """Codes of a layer, [J, capacity]."""
    num_experts, capacity = table[_NUM_EXPERTS], table[_CAPACITY]
    size = num_experts * capacity
    return uint16_at(table[_CODES] + 2 * layer * size, size).reshape(num_experts, capacity)


@njit(cache=True, nogil=True)
def _unite(rows, selected, probabilities, experts):  # type: ignore[no-untyped-def]
    """Fill in the maximum over rows and the union of what they select; returns the number of selected experts."""
    n = np.int64(0)
    for expert in range(rows.shape[1]):
        probabilities[expert], is_selected = rows[0, expert], selected[0, expert]
        for row in range(1, rows.shape[0]):
            probabilities[expert] = max(probabilities[expert], rows[row, expert])
            is_selected |= selected[row, expert]
        if is_selected:
            experts[n] = expert
            n += 1
    return n


@functools.cache
def follow_gate_address() -> int:
    """Address of the compiled `follow_gate`, for code that calls functions by address."""
    numbers, singles = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    examples = numbers, 1, singles[None], numbers[None], numbers, singles[None], numbers, numbers[None]
    return function_addresses(follow_gate, *examples)[0]
