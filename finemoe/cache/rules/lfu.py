"""Least frequently used, by all-time demand counts (DESIGN 4; MoE-Infinity's rule)."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Worth is the number of demand visits."""
    for place in range(len(experts)):
        worth[place] = stats.frequency[experts[place]]


RULE = EvictionRule(weigh)
