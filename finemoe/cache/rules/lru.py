"""Least recently used: evict the expert with the oldest last demand (Mixtral-Offloading's rule)."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Worth is the time of the last demand, in events: experts of one event have equal worth."""
    for place in range(len(experts)):
        worth[place] = stats.last_visit[experts[place]]


RULE = EvictionRule(weigh)
