"""Belady's rule: evict the expert whose next demand is farthest away. It must know the future, so only replay has it."""

import numpy as np

from tests.cache.readable.base import EvictionRule


class Belady(EvictionRule):
    """The executor keeps `next_use` up to date: the number of the event that demands each expert next, [L, J] int64."""

    needs_future = True

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__(num_layers, num_experts)
        self.next_use = np.zeros((num_layers, num_experts), dtype=np.int64)

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        return -self.next_use.reshape(-1)[candidates]
