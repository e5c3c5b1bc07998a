"""FineMoE's rule (section 4.5): evict the highest 1 / (p · freq), with p from the searched maps and freq as in LFU."""

import numpy as np

from tests.cache.readable.base import EvictionRule


class FineMoEEviction(EvictionRule):
    """Worth is p · freq: recency is deliberately unused, as in the paper."""

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        probability = self.expected.reshape(-1)[candidates].astype(np.float64)
        return probability * self.frequency.reshape(-1)[candidates]
