"""An eviction rule from elsewhere: what was demanded last goes first."""

import numpy as np

from finemoe.cache.rules import EvictionRule


def weigh(stats, experts: np.ndarray, worth: np.ndarray) -> None:
    for place in range(len(experts)):
        worth[place] = -stats.last_visit[experts[place]]


NEWEST_FIRST = EvictionRule("newest-first", weigh)
