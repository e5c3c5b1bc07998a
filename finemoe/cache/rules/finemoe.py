"""FineMoE's rule (section 4.5): evict the highest 1 / (p · freq), with p from the searched maps and freq as in LFU."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Worth is p · freq; recency is deliberately not used, as in the paper."""
    for place in range(len(experts)):
        flat = experts[place]
        worth[place] = stats.expected[flat] * stats.frequency[flat]


RULE = EvictionRule(weigh)
