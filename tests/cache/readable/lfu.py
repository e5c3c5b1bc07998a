"""Least frequently used, by all-time demand counts (DESIGN 4; MoE-Infinity's rule)."""

import numpy as np

from tests.cache.readable.base import EvictionRule


class LFU(EvictionRule):
    """The expert with the fewest demand visits goes."""

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        return self.frequency.reshape(-1)[candidates]
