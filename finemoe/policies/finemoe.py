"""FineMoE (sections 4.2-4.5): semantic search predicts layers 1..d, trajectory search the other layers, d layers ahead.

With a history, the store is filled from it and frozen. Without one it starts empty, and every finished iteration enters it before
the next one starts.
"""

from collections.abc import Mapping

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.maps.following import Following, follow_gate_address
from finemoe.maps.search import follow_block, guide, guides
from finemoe.maps.selection import select_experts, thresholds_of
from finemoe.maps.store import ExpertMapStore, semantic_search_bytes, trajectory_search_bytes
from finemoe.maps.warm_up import warm_up
from finemoe.policies.base import Context, Policy, PolicySetup, Prediction, history_trace
from finemoe.policies.block import Block
from finemoe.policies.gate_step import GateStep
from finemoe.policies.predictions import Predictions
from finemoe.traces import RoutingTrace


class FineMoE(Policy):
    """The paper's system.

    Args:
        setup: model sizes, d, C, history.
        semantic: whether semantic search predicts layers 1..d (otherwise nothing does).
        similarity_aware: whether a poor match prefetches more than K experts (Eqs. 6-8). Both options are off only in the
            ablation of Fig. 14a.
    Raises:
        FinemoeError: the history is of a model with other sizes.
    """

    default_eviction = "finemoe"

    def __init__(self, setup: PolicySetup, semantic: bool = True, similarity_aware: bool = True) -> None:
        super().__init__(setup)
        warm_up()
        self.store = store_from(setup)
        self._is_semantic, self._is_similarity_aware = semantic, similarity_aware
        self._learns = setup.history is None
        self._context = Context(None, is_prefill=False, starts_request=True)
        self._following: Following | None = None
        self._sizes = np.zeros(0, dtype=np.int64)  # number of records in the store at each iteration of the last block

    def start_iteration(self, context: Context) -> list[Prediction]:
        self._context, self._following = context, None
        if context.embeddings is None or context.is_streamed or not self._searches_embeddings:
            return []
        neighbours, scores = self.store.nearest_embeddings(context.embeddings)
        return [self._guided(layer, neighbours, scores) for layer in range(self.setup.prefetch_distance)]

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        if layer == 0 or self._following is None:
            self._following = self._follow(len(probs))
        found = self._following.hear(layer, probs)
        return [] if found is None else [Prediction(layer + self.setup.prefetch_distance, *found)]

    def gate_step(self, num_rows: int) -> GateStep:
        self._following = following = self._follow(num_rows)
        return GateStep(follow_gate_address(), following.table, 1, following)

    def end_iteration(self) -> None:
        has_embeddings = self._context.embeddings is not None or not self.store.embedding_dim
        maps = None if self._following is None else self._following.maps
        if maps is not None and has_embeddings:
            self.store.add(maps, self._context.embeddings)

    def learned(self) -> dict[str, np.ndarray]:
        return self.store.state() if self._learns else {}

    def restore(self, learned: Mapping[str, np.ndarray]) -> None:
        if self._learns:
            self.store.restore(learned)

    def predict_block(self, block: Block) -> Predictions:
        """With a frozen store, search for all rows of the block together; otherwise one iteration at a time."""
        if self._learns:
            return self._learn_block(block)
        self._sizes = np.full(block.num_iterations, len(self.store))
        distance, parts = self.setup.prefetch_distance, []
        first, neighbours, scores = follow_block(
            self.store, block.gates, block.embeddings if self._is_semantic else None, distance
        )
        for layer, mine in enumerate(neighbours, start=first):
            moment = block.at_start if layer < distance else block.at_first_gate + 2 * (layer - distance)
            similar = scores[layer - first] if self._is_similarity_aware else None
            parts.append(self.wanted_in_block(block, moment, layer, guide(self.store, mine, layer), similar))
        return Predictions.of(parts, self.setup.num_experts)

    def _learn_block(self, block: Block) -> Predictions:
        """Iteration by iteration, since each enters the store; the layers of an iteration are searched together."""
        told, parts, sizes = block.told(self.setup.prefetch_distance), [], []
        for number, (begin, end) in enumerate(zip(block.starts[:-1].tolist(), block.starts[1:].tolist(), strict=True)):
            sizes.append(len(self.store))
            gates = np.ascontiguousarray(block.gates[:, begin:end])
            embeddings = None if block.embeddings is None else block.embeddings[begin:end]
            told_by = embeddings if self._is_semantic else None
            first, neighbours, scores = follow_block(self.store, gates, told_by, self.setup.prefetch_distance)
            if len(neighbours):
                parts.append(self._wanted_of_layers(told[number, first:], first, neighbours, scores))
            if embeddings is not None or not self.store.embedding_dim:
                self.store.add(np.ascontiguousarray(gates.transpose(1, 0, 2)), embeddings)
        self._sizes = np.array(sizes)
        return Predictions.of(parts, self.setup.num_experts)

    def _wanted_of_layers(self, moments: np.ndarray, first: int, neighbours: np.ndarray, scores: np.ndarray) -> Predictions:
        """Like `wanted` for consecutive layers of one iteration; moments: [m] when each is predicted."""
        probs = guides(self.store, neighbours, first)
        told = thresholds_of(scores.reshape(-1) if self._is_similarity_aware else None, scores.size)
        selected = select_experts(probs.reshape(scores.size, -1), told, self.setup.top_k).reshape(probs.shape)
        layers, chosen = np.arange(first, first + len(probs)), np.logical_or.reduce(selected, axis=1)
        return Predictions(moments, layers, probs.max(axis=1), chosen)

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """Each row searches separately: by its embedding at the start, by its trajectory at every gate. In a streamed iteration,
        none does."""
        if self._context.is_streamed:
            return np.zeros((len(num_rows), 1 + self.setup.num_layers))
        return self._read_bytes(num_rows, np.full(len(num_rows), len(self.store)), hidden_size)

    def read_bytes_in_block(self, block: Block, hidden_size: int) -> np.ndarray:
        return self._read_bytes(block.num_rows, self._sizes, hidden_size)

    def _read_bytes(self, num_rows: np.ndarray, sizes: np.ndarray, hidden_size: int) -> np.ndarray:
        """`read_bytes` given the number of records in the store at each iteration, [n]."""
        trajectory = trajectory_search_bytes(sizes, self.setup.num_experts)
        read = self._at_gates(num_rows * trajectory.astype(float), self.setup.prefetch_distance)
        if self._is_semantic and self.store.embedding_dim > 0:
            read[:, 0] = num_rows * semantic_search_bytes(sizes, hidden_size).astype(float)
        return read

    def _follow(self, num_rows: int) -> Following:
        """The search state of a new iteration; a streamed one looks past the last layer, so it only keeps gates."""
        setup = self.setup
        distance = setup.num_layers if self._context.is_streamed else setup.prefetch_distance
        return Following(self.store, num_rows, distance, setup.top_k, self._is_similarity_aware, keeps_gates=self._learns)

    @property
    def _searches_embeddings(self) -> bool:
        """Whether semantic search has anything to search."""
        return self._is_semantic and len(self.store) > 0 and self.store.embedding_dim > 0

    def _guided(self, layer: int, neighbours: np.ndarray, scores: np.ndarray) -> Prediction:
        return self.wanted(layer, guide(self.store, neighbours, layer), scores if self._is_similarity_aware else None)


def store_from(setup: PolicySetup) -> ExpertMapStore:
    """The store at the start of a run: the given one, one built from a history trace, or an empty one.

    Raises:
        FinemoeError: the history is of a model with other sizes, or is neither a trace nor a store.
    """
    history = setup.history
    if isinstance(history, ExpertMapStore):
        return _require_sizes(history, setup)
    if history is not None and not isinstance(history, RoutingTrace):
        raise FinemoeError(f"history must be a RoutingTrace or an ExpertMapStore, not {type(history).__name__}")
    history = history_trace(setup, "finemoe")
    has_embeddings = history is None or history.embedding_table is not None
    store = ExpertMapStore(
        setup.num_layers,
        setup.num_experts,
        setup.embedding_dim if has_embeddings else 0,
        setup.store_capacity,
        setup.prefetch_distance,
        setup.model,
    )
    return store if history is None else fill_store(store, history)


def fill_store(store: ExpertMapStore, history: RoutingTrace, block_rows: int = 4096) -> ExpertMapStore:
    """Enter every row of a history trace in order, in blocks of bounded size; returns the store."""
    for begin in range(0, history.num_rows, block_rows):
        rows = slice(begin, begin + block_rows)
        store.add(history.maps(rows), history.embeddings(rows) if store.embedding_dim else None)
    return store


def _require_sizes(store: ExpertMapStore, setup: PolicySetup) -> ExpertMapStore:
    expected = (setup.num_layers, setup.num_experts)
    if (store.num_layers, store.num_experts) != expected:
        raise FinemoeError(
            f"the store holds maps of {store.num_layers} x {store.num_experts} experts, "
            f"the model has {expected[0]} x {expected[1]}"
        )
    if store.model and setup.model and store.model != setup.model:
        raise FinemoeError(f"the store holds maps of {store.model!r}, not of {setup.model!r}; build a store for this model")
    return store
