"""Learned predictors: for every layer, a small linear model that predicts its experts from the gates a few layers before it.

Ridge regression in closed form. Its sums are updated row by row, which works online and for a recorded trace. It gives the same
weights on every run and takes seconds for a whole history.
"""

import numpy as np

from finemoe.compiling import njit

_RIDGE = 1e-3  # relative to the mean square of a feature


@njit(cache=True, nogil=True)
def add_products(features, weights, scores):  # type: ignore[no-untyped-def]
    """scores += features @ weights, summed feature by feature; features [B, n], weights [n, J], scores [B, J].

    A library's product rounds differently for one row and for many; a replay that predicts many rows at once would then differ
    from a live run.
    """
    for row in range(features.shape[0]):
        for n in range(features.shape[1]):
            feature = features[row, n]
            for expert in range(weights.shape[1]):
                scores[row, expert] += feature * weights[n, expert]


class LayerPredictors:
    """Predictors of layers d..L-1, each from the gate outputs of the layers d, d+1, ... before it.

    Args:
        num_layers, num_experts: L, J. distance: d in layers. num_recent: maximum number of gate outputs a prediction reads.
    """

    def __init__(self, num_layers: int, num_experts: int, distance: int, num_recent: int = 8) -> None:
        self._num_layers, self._num_experts, self._distance = num_layers, num_experts, distance
        self._num_recent = num_recent
        add_products(*np.zeros((3, 1, 1), dtype=np.float32))  # compile (or load) it before inference needs it
        sizes = [1 + num_experts * len(self._sources(target)) for target in range(distance, num_layers)]
        self._squares = [np.zeros((size, size)) for size in sizes]
        self._products = [np.zeros((size, num_experts)) for size in sizes]
        self._weights: list[np.ndarray] = []
        self._ones = np.ones((1, 1), dtype=np.float32)  # the constant feature, for as many rows as in the last call
        self._taught = [self]  # all predictors that learn from the rows given to this one
        self.num_rows = 0

    def farther(self, distance: int) -> "LayerPredictors":
        """Predictors at a greater distance that learn from the rows given to this one: the costly part, the products of features
        with each other, is computed once for both."""
        other = LayerPredictors(self._num_layers, self._num_experts, distance, self._num_recent)
        other._squares = self._squares[: len(other._squares)]
        self._taught.append(other)
        return other

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has been called."""
        return bool(self._weights)

    @property
    def num_weights(self) -> int:
        """Number of weights of all layers' predictors."""
        return sum(products.size for products in self._products)

    @property
    def prediction_bytes(self) -> int:
        """Most bytes that one prediction reads, for any number of rows: the weights of the largest predictor; 0 before `fit`."""
        return max((weights.nbytes for weights in self._weights), default=0)

    def learn(self, maps: np.ndarray, experts: np.ndarray) -> None:
        """Add rows: maps [n, L, J] and the experts that they activated [n, L, K]."""
        for one in self._taught:
            one.num_rows += len(maps)
        activated = np.zeros(maps.shape, dtype=np.float32)
        np.put_along_axis(activated, experts, 1.0, axis=-1)
        for place in range(len(self._squares)):
            features = self._features(place + self._distance, maps.transpose(1, 0, 2))
            self._squares[place] += features.T @ features
            for one in self._taught:
                if place < len(one._products):
                    one._products[place] += features.T @ activated[:, place + one._distance]

    def fit(self) -> None:
        """Solve for the weights, from all rows added so far."""
        self._weights = [self._solve(squares, products) for squares, products in zip(self._squares, self._products, strict=True)]

    def predict(self, target: int, gates: "np.ndarray | list[np.ndarray]") -> np.ndarray:
        """Distribution over the experts of layer `target`, [B, J] float32; gates: [B, J] of every layer up to target - d.

        The result for a row does not depend on the other rows.
        """
        scores = np.zeros((len(gates[0]), self._num_experts), dtype=np.float32)
        add_products(self._features(target, gates), self._weights[target - self._distance], scores)
        np.maximum(scores, 0.0, out=scores)
        scores += 1e-9
        scores /= scores.sum(axis=1, keepdims=True)
        return scores

    def _sources(self, target: int) -> range:
        last = target - self._distance
        return range(max(0, last - self._num_recent + 1), last + 1)

    def _features(self, target: int, gates: "np.ndarray | list[np.ndarray]") -> np.ndarray:
        parts = [gates[layer] for layer in self._sources(target)]
        if len(self._ones) != len(parts[0]):
            self._ones = np.ones((len(parts[0]), 1), dtype=np.float32)
        return np.concatenate([*parts, self._ones], axis=1)

    def _solve(self, squares: np.ndarray, products: np.ndarray) -> np.ndarray:
        ridge = _RIDGE * np.trace(squares) / len(squares)
        weights = np.linalg.solve(squares + ridge * np.eye(len(squares)), products)
        return weights.astype(np.float32)
