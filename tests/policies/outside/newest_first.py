"""An eviction rule from elsewhere: what was demanded last goes first."""

import numpy as np

from finemoe.cache.eviction.lru import LRU


class NewestFirst(LRU):
    def worth(self, candidates: np.ndarray) -> np.ndarray:
        return -super().worth(candidates)
