"""MoE-Infinity (Xue et al. 2024, arXiv 2401.14361, section 4): request-level Expert Activation Matrices.

A request's matrix [L, J] counts how often each expert was activated, summed over its iterations. A collection keeps some matrices
of past requests, chosen by clustering. The matrix most similar to the running request's partial matrix (cosine, flattened)
predicts the experts; the first d layers, for which no gate has fired yet, get the most popular ones. Inference waits for
prefetches, and eviction is LFU, as the FineMoE paper (section 6.1) describes the system. Our version differs from the original
publication in both: the original prefetches in parallel with inference and ranks cached experts by the predicted matrix. In
addition, here a layer is predicted once, d layers ahead, as in every system of this package, whereas the original predicts all
later layers at every gate with priorities that decrease with distance; and here the sequences of a batch share one matrix.
"""

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.policies.base import Context, Policy, PolicySetup, Prediction, history_trace
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions
from finemoe.traces import RoutingTrace


class MoEInfinity(Policy):
    """Nearest past request by activation counts.

    Args:
        setup: model sizes, d, history (a trace; None: finished requests enter the collection one by one).
        collection_capacity: maximum number of matrices.
    """

    is_synchronous = True
    default_eviction = "lfu"

    def __init__(self, setup: PolicySetup, collection_capacity: int = 120) -> None:
        super().__init__(setup)
        if collection_capacity < 1:
            raise FinemoeError(f"collection_capacity is {collection_capacity}; it must be at least 1 matrix")
        shape = (setup.num_layers, setup.num_experts)
        history = history_trace(setup, "moe-infinity")
        past = np.zeros((0, *shape)) if history is None else request_counts(history)
        self._learns, self._capacity = history is None, collection_capacity
        self._popularity = past.sum(axis=0)
        self.collection = representatives(past, collection_capacity, setup.seed)
        self._running = np.zeros(shape)
        self._sizes = np.zeros(0)  # number of matrices at each iteration of the last block
        self._dots = np.zeros(len(self.collection))

    def start_iteration(self, context: Context) -> list[Prediction]:
        if context.starts_request:
            self._end_request()
            self._begin_request()
        if not self._popularity.any():
            return []
        return [self._most(layer, self._popularity[layer], context.num_rows) for layer in range(self.setup.prefetch_distance)]

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        counts = np.bincount(experts.reshape(-1), minlength=self.setup.num_experts)
        self._running[layer] += counts
        self._dots += self.collection[:, layer] @ counts
        target = layer + self.setup.prefetch_distance
        if target >= self.setup.num_layers or not len(self.collection):
            return []
        nearest = int(self._dots.argmax())
        return [self._most(target, self.collection[nearest, target], len(experts))]

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """A gate compares one layer of every matrix, for any number of rows, even if no layer is left to predict."""
        return self._at_gates(np.full(len(num_rows), 8.0 * len(self.collection) * self.setup.num_experts), distance=0)

    def read_bytes_in_block(self, block: Block, hidden_size: int) -> np.ndarray:
        return self._at_gates(8.0 * self._sizes * self.setup.num_experts, distance=0)

    def end_iteration(self) -> None:
        return None

    def predict_block(self, block: Block) -> Predictions:
        """Request by request, because the policy learns only between requests."""
        counts, moments = block.counts, block.told(self.setup.prefetch_distance)
        begins = np.union1d([0], np.flatnonzero(block.starts_request))
        parts, sizes = [], []
        for begin, end in zip(begins, [*begins[1:], block.num_iterations], strict=True):
            if block.starts_request[begin]:
                self._end_request()
                self._begin_request()
            parts.append(self._predict_request(counts[begin:end], block.num_rows[begin:end], moments[begin:end]))
            sizes.append(np.full(end - begin, len(self.collection)))
        self._sizes = np.concatenate(sizes)
        return Predictions.of(parts, self.setup.num_experts)

    def _predict_request(self, counts: np.ndarray, num_rows: np.ndarray, moments: np.ndarray) -> Predictions:
        """Predict iterations of one request: activation counts [n, L, J], rows [n], moments of each layer's prediction [n, L]."""
        num_layers, distance = self.setup.num_layers, self.setup.prefetch_distance
        first = 0 if self._popularity.any() else distance  # first layer with a prediction
        last = num_layers if len(self.collection) else distance
        nearest = np.full((len(counts), num_layers), -1)  # matrix for each predicted layer; -1 for the popular experts
        if len(self.collection):
            nearest[:, distance:] = self._follow(counts).argmax(axis=1).reshape(len(counts), -1)[:, : num_layers - distance]
        self._running += counts.sum(axis=0)
        layers = np.broadcast_to(np.arange(first, last), (len(counts), last - first)).reshape(-1)
        kinds = np.stack([nearest[:, first:last].reshape(-1), layers, np.repeat(num_rows, last - first)], axis=1)
        different, places = np.unique(kinds, axis=0, return_inverse=True)
        known = [
            self._most(layer, self._popularity[layer] if matrix < 0 else self.collection[matrix, layer], rows)
            for matrix, layer, rows in different.tolist()
        ]
        probabilities = np.zeros((len(known), self.setup.num_experts), dtype=np.float32)
        selected = np.zeros(probabilities.shape, dtype=np.bool_)
        for place, prediction in enumerate(known):
            probabilities[place] = prediction.probabilities
            selected[place, prediction.experts] = True
        places = places.reshape(-1)
        return Predictions(moments[:, first:last].reshape(-1), layers, probabilities[places], selected[places])

    def _follow(self, counts: np.ndarray) -> np.ndarray:
        """`_dots` after every gate, [n · L, matrices], summed gate by gate as in `on_gate`; counts: [n, L, J]."""
        dots = np.empty((counts[..., 0].size, len(self.collection)))
        activated = counts.reshape(len(dots), -1).astype(np.float64)
        for event, of_event in enumerate(activated):
            np.matmul(self.collection[:, event % self.setup.num_layers], of_event, out=dots[event])
        dots[0] += self._dots
        np.cumsum(dots, axis=0, out=dots)
        self._dots = np.array(dots[-1])
        return dots

    def _most(self, layer: int, counts: np.ndarray, num_rows: int) -> Prediction:
        """The experts with the most counts: K per row, never one that was not activated."""
        total = counts.sum()
        probabilities = counts / total if total else np.full(len(counts), 1.0 / len(counts))
        ranked = np.argsort(-counts, kind="stable")[: self.setup.top_k * num_rows]
        experts = np.sort(ranked[counts[ranked] > 0])
        return Prediction(layer, probabilities.astype(np.float32), experts)

    def _begin_request(self) -> None:
        self._running[:] = 0
        self._dots = np.zeros(len(self.collection))

    def _end_request(self) -> None:
        """Online, add a finished request; at capacity it replaces the most similar matrix."""
        if not self._learns or not self._running.any():
            return
        self._popularity += self._running
        unit = self._running / np.linalg.norm(self._running)
        if len(self.collection) < self._capacity:
            self.collection = np.concatenate([self.collection, unit[None]])
        else:
            self.collection[int((self.collection * unit).sum(axis=(1, 2)).argmax())] = unit


def request_counts(trace: RoutingTrace) -> np.ndarray:
    """Activation counts of whole requests, [R, L, J]: their Expert Activation Matrices."""
    counts = np.zeros((trace.num_requests, trace.num_layers, trace.num_experts))
    layers = np.arange(trace.num_layers)[None, :, None]
    for request in range(trace.num_requests):
        ids = trace.expert_ids[trace.rows_of(request)].astype(np.int64)
        np.add.at(counts[request], (layers, ids), 1.0)
    return counts


def representatives(matrices: np.ndarray, capacity: int, seed: int) -> np.ndarray:
    """At most `capacity` of the matrices [R, L, J], scaled to length 1: from every k-means cluster the one nearest its centre."""
    from scipy.cluster.vq import kmeans2

    units = matrices / np.maximum(np.linalg.norm(matrices, axis=(1, 2), keepdims=True), 1e-20)
    if len(units) <= capacity:
        return units
    flat = units.reshape(len(units), -1)
    centres, _ = kmeans2(flat, capacity, minit="++", rng=np.random.default_rng(seed), missing="warn")
    distances = np.square(flat).sum(axis=1)[None] - 2 * centres @ flat.T
    return units[np.unique(distances.argmin(axis=1))]
