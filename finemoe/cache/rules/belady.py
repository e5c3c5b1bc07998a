"""Belady's rule: evict the expert whose next demand is farthest away. It needs the future, so it is available only in replay."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """The executor updates `next_use`."""
    for place in range(len(experts)):
        worth[place] = -stats.next_use[experts[place]]


RULE = EvictionRule(weigh, needs_future=True)
