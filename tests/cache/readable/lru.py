"""Least recently used: the expert whose last demand is longest ago goes (Mixtral-Offloading's rule)."""

import numpy as np

from tests.cache.readable.base import EvictionRule


class LRU(EvictionRule):
    """Recency is counted in events: experts of one event share one time."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__(num_layers, num_experts)
        self._time = 0
        self._last_visit = np.zeros((num_layers, num_experts), dtype=np.int64)

    def visit(self, layer: int, experts: np.ndarray) -> None:
        super().visit(layer, experts)
        self._time += 1
        self._last_visit[layer, experts] = self._time

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        return self._last_visit.reshape(-1)[candidates]
