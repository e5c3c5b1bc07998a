"""Least recently used: the expert whose last demand is longest ago goes (Mixtral-Offloading's rule)."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Recency is counted in events: experts of one event share one time."""
    for place in range(len(experts)):
        worth[place] = stats.last_visit[experts[place]]


RULE = EvictionRule(weigh)
