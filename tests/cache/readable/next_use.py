"""Next use: evict the expert whose forecast next use is the least likely and the farthest away.

Two logistic models a layer, of the coming turn and of the turns after it, that learn online from decayed frequencies and from the
sets that the layers demanded last.
"""

import math

import numpy as np

from tests.cache.readable.base import EvictionRule

DISCOUNT = 0.6
DECAY = 2.0 ** (-1.0 / 15.0)


def logistic(scores: np.ndarray) -> np.ndarray:
    """By the C library's function, which NumPy's own may differ from in the last digit."""
    return np.array([1.0 / (1.0 + math.exp(-score)) for score in scores])


class Model:
    """A table [source expert, target expert] for every target layer and every layer at most so far before it."""

    def __init__(self, num_tables: int, num_layers: int, num_experts: int) -> None:
        self.reach = min(num_tables, num_layers)
        self.tables = np.zeros((num_layers, self.reach, num_experts, num_experts))

    def scores(self, layer: int, sets: list[list[int]], start: np.ndarray) -> np.ndarray:
        total = start.copy()
        for before in range(self.reach):
            source = sets[layer - before]
            for expert in source:
                total += 1.0 / math.sqrt(len(source)) * self.tables[layer, before, expert]
        return total

    def learn(self, layer: int, sets: list[list[int]], error: np.ndarray) -> None:
        for before in range(self.reach):
            source = sets[layer - before]
            for expert in source:
                self.tables[layer, before, expert] -= 0.1 / math.sqrt(len(source)) * error


class NextUse(EvictionRule):
    """Worth is the discounted number of turns until the next use, less what passes of the coming one before its layer comes."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__(num_layers, num_experts)
        num_tables = min(16, max(512 // num_experts, 2))
        num_later = math.ceil(num_tables / 4)
        self._coming_model = Model(num_tables - num_later, num_layers, num_experts)
        self._later_model = Model(num_later, num_layers, num_experts)
        self._share, self._coming, self._later = (np.full((num_layers, num_experts), 0.1) for _ in range(3))
        self._newest: list[list[int]] = [[] for _ in range(num_layers)]
        self._older: list[list[int]] = [[] for _ in range(num_layers)]
        self._is_heard = np.zeros(num_layers, dtype=np.bool_)
        self._layer = -1

    def hear(self, layer: int, probabilities: np.ndarray) -> None:
        super().hear(layer, probabilities)
        self._is_heard[layer] = True

    def visit(self, layer: int, experts: np.ndarray) -> None:
        super().visit(layer, experts)
        num_experts = self.frequency.shape[1]
        self._layer, self._is_heard[layer] = layer, False
        self._older[layer] = self._newest[layer]
        self._newest[layer] = experts.tolist() if len(experts) <= num_experts / 2 else []
        is_used = np.isin(np.arange(num_experts), experts)

        self._coming_model.learn(layer, self._older, self._coming[layer] - is_used)
        self._share[layer] = self._share[layer] * DECAY + is_used * (1.0 - DECAY)
        share = self._share[layer]
        start = np.array([0.5 * math.log(odds) for odds in (share + 0.005) / (1.0 - share + 0.005)])
        coming = logistic(self._coming_model.scores(layer, self._newest, start))
        later = logistic(self._later_model.scores(layer, self._newest, start))
        error = self._later[layer] - (coming + (1.0 - coming) * DISCOUNT * later)
        self._later_model.learn(layer, self._older, np.where(is_used, 0.0, error))
        self._coming[layer], self._later[layer] = coming, later

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        num_layers, num_experts = self.frequency.shape
        layers = candidates // num_experts
        until = (layers - self._layer - 1) % num_layers + 1
        coming = np.where(self._is_heard[:, None], self.expected.astype(np.float64), self._coming).reshape(-1)[candidates]
        value = coming + (1.0 - coming) * DISCOUNT * self._later.reshape(-1)[candidates]
        return value * (1.0 - (1.0 - DISCOUNT) * until / num_layers)
