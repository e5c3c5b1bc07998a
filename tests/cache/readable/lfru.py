"""Least frequently and recently used: demand visits over the time since the last one (llama.cpp pull request 21609)."""

import numpy as np

from tests.cache.readable.lru import LRU


class LFRU(LRU):
    """Frequency per age, in events; an expert that was never demanded has the age of the whole run."""

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        ages = self._time + 1 - self._last_visit.reshape(-1)[candidates]
        return self.frequency.reshape(-1)[candidates] / ages
