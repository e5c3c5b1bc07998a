"""Least frequently and recently used: demand visits over the time since the last one (llama.cpp pull request 21609)."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import TIME, Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Frequency per age, in events; an expert that was never demanded has the age of the whole run."""
    for place in range(len(experts)):
        flat = experts[place]
        worth[place] = stats.frequency[flat] / (stats.clock[TIME] + 1 - stats.last_visit[flat])


RULE = EvictionRule(weigh)
