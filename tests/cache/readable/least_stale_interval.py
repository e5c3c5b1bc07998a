"""Least-Stale in its other published reading: forecast each expert's next use from its reuse intervals, evict the most distant.

The interval is an exponentially weighted mean of the turns of its layer between two demands; an expert that was not demanded
twice is expected after J turns.
"""

import numpy as np

from tests.cache.readable.base import EvictionRule

NEWEST_SHARE = 0.3


class LeastStaleInterval(EvictionRule):
    """Time is counted in turns of the expert's own layer, which all layers have equally often."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__(num_layers, num_experts)
        self._turn = np.zeros(num_layers, dtype=np.int64)
        self._last_turn = np.full((num_layers, num_experts), -1, dtype=np.int64)
        self._interval = np.full((num_layers, num_experts), float(num_experts))

    def visit(self, layer: int, experts: np.ndarray) -> None:
        super().visit(layer, experts)
        self._turn[layer] += 1
        last = self._last_turn[layer, experts]
        seen = experts[last >= 0]
        newest = self._turn[layer] - last[last >= 0]
        self._interval[layer, seen] += NEWEST_SHARE * (newest - self._interval[layer, seen])
        self._last_turn[layer, experts] = self._turn[layer]

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        num_experts = self.frequency.shape[1]
        last, turn = self._last_turn.reshape(-1)[candidates], self._turn[candidates // num_experts]
        next_turn = np.where(last >= 0, last, turn) + self._interval.reshape(-1)[candidates]
        return turn - next_turn
