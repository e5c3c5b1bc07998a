"""Belady's rule: evict the expert whose next demand is farthest away. It must know the future, so only replay has it."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """The executor keeps `next_use` up to date."""
    for place in range(len(experts)):
        worth[place] = -stats.next_use[experts[place]]


RULE = EvictionRule(weigh, needs_future=True)
