"""Least frequently used with aging: a demand visit counts less the longer it is ago (half after 32 turns of its layer)."""

import numpy as np

from tests.cache.readable.base import EvictionRule

DECAY = 2.0 ** (-1.0 / 32.0)


class LFUAged(EvictionRule):
    """Counts decay once whenever their layer runs, so that layers are compared alike."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__(num_layers, num_experts)
        self._score = np.zeros((num_layers, num_experts), dtype=np.float64)

    def visit(self, layer: int, experts: np.ndarray) -> None:
        super().visit(layer, experts)
        self._score[layer] *= DECAY
        self._score[layer, experts] += 1.0

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        return self._score.reshape(-1)[candidates]
