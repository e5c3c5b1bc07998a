"""Trajectory search (section 4.2.2, Eq. 5) with incremental prefix cosines.

Eq. 5 compares the observed prefix P_1..P_m with the same prefix of all C stored maps. Each layer only adds its own product to
running dots [B, C], so the search at a layer costs one [B, J] x [J, C] product for any length of the prefix.
"""

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.maps.kernels import advance_prefix, follow_prefix, gather_layers, gather_rows, nearest_neighbours
from finemoe.maps.store import ExpertMapStore


class TrajectorySearch:
    """One iteration's search over a store that does not change meanwhile.

    Args:
        store: the records searched.
        num_rows: B, rows of the iteration (one per sequence in decode, one per token in prefill).
    """

    def __init__(self, store: ExpertMapStore, num_rows: int) -> None:
        self._store = store
        self._num_layers_seen = 0
        self._dots = np.zeros((num_rows, len(store)), dtype=np.float32)
        self._squares = np.zeros(num_rows, dtype=np.float32)
        self._codes = store.map_codes
        self._inverse_norms = store.inverse_prefix_norms[:, : len(store)]

    def observe(self, layer: int, probs: np.ndarray) -> None:
        """Extend the prefix by the gate output of `layer`, [B, J] float32.

        Raises:
            FinemoeError: layers are not observed in order, or the shape is wrong.
        """
        if layer != self._num_layers_seen:
            raise FinemoeError(f"layer {layer} observed after {self._num_layers_seen} layers; a prefix grows layer by layer")
        if probs.shape != (len(self._dots), self._store.num_experts):
            raise FinemoeError(f"gate output must be {(len(self._dots), self._store.num_experts)}, not {probs.shape}")
        self._num_layers_seen += 1
        advance_prefix(self._codes[layer], probs, self._dots, self._squares)

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Eq. 5: the stored map with the most similar prefix for each row, and its cosine: neighbours [B], scores [B].

        Raises:
            FinemoeError: nothing was observed, or the store is empty.
        """
        if not self._num_layers_seen or not self._dots.shape[1]:
            raise FinemoeError("nothing to search: observe a layer first, and search a store that holds records")
        num_rows = len(self._dots)
        neighbours, scores = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.float32)
        norms = self._inverse_norms[self._num_layers_seen - 1]
        nearest_neighbours(self._dots, norms, self._squares, neighbours, scores)
        return neighbours, scores


def follow(store: ExpertMapStore, gates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 5 after each of the first n layers at once: the results of a `TrajectorySearch` that observes them one by one.

    Args:
        gates: [n, B, J] float32, contiguous.
    Returns:
        neighbours [n, B] int64 and scores [n, B] float32.
    Raises:
        FinemoeError: the store is empty.
    """
    if not len(store):
        raise FinemoeError("nothing to search: the store holds no records")
    num_rows = gates.shape[1]
    dots, squares = np.zeros((num_rows, len(store)), dtype=np.float32), np.zeros(num_rows, dtype=np.float32)
    neighbours, scores = np.empty(gates.shape[:2], dtype=np.int64), np.empty(gates.shape[:2], dtype=np.float32)
    follow_prefix(store.map_codes, store.inverse_prefix_norms, gates, dots, squares, neighbours, scores)
    return neighbours, scores


def follow_block(
    store: ExpertMapStore, gates: np.ndarray, embeddings: np.ndarray | None, distance: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """The stored maps that predict the layers of many rows: the first `distance` by their embeddings, the others by Eq. 5.

    Args:
        gates: [L, B, J] float32. embeddings: [B, h], or None.
    Returns:
        The first layer with a prediction (L if there is none), and from there on neighbours [m, B] and scores [m, B].
    """
    num_layers, num_rows = gates.shape[:2]
    if not len(store):
        return num_layers, np.zeros((0, num_rows), dtype=np.int64), np.zeros((0, num_rows), dtype=np.float32)
    neighbours, scores = follow(store, gates[: num_layers - distance])
    if embeddings is None or not store.embedding_dim:
        return distance, neighbours, scores
    alike, similar = store.nearest_embeddings(embeddings)
    neighbours = np.concatenate([np.broadcast_to(alike, (distance, num_rows)), neighbours])
    return 0, neighbours, np.concatenate([np.broadcast_to(similar, (distance, num_rows)), scores])


def guides(store: ExpertMapStore, neighbours: np.ndarray, first: int) -> np.ndarray:
    """P_l of the stored maps, for consecutive layers from `first` on: neighbours [n, B] -> [n, B, J] float32."""
    rows = np.empty((*neighbours.shape, store.num_experts), dtype=np.float32)
    gather_layers(store.map_codes, first, neighbours, rows)
    return rows


def guide(store: ExpertMapStore, neighbours: np.ndarray, layer: int) -> np.ndarray:
    """P_l of the given stored maps, [B, J] float32."""
    rows = np.empty((len(neighbours), store.num_experts), dtype=np.float32)
    gather_rows(store.map_codes[layer], neighbours, rows)
    return rows
