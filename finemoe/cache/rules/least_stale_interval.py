"""Least-Stale in its other published reading: forecast each expert's next use from its reuse intervals, evict the most distant.

The interval is an exponentially weighted mean of the number of turns of the layer between two demands; an expert that was
demanded less than twice is expected after J turns. Time is counted in turns of the expert's own layer; all layers have equally
many turns.
"""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics

NEWEST_SHARE = 0.3
INTERVAL = 0  # own row


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """The negative number of turns until the forecast next use."""
    for place in range(len(experts)):
        flat = experts[place]
        turn, last = stats.turns[stats.layer_of[flat]], stats.last_turn[flat]
        worth[place] = turn - ((last if last >= 0 else turn) + stats.own[INTERVAL, flat])


def visit(stats: Statistics, layer: int, experts: np.ndarray) -> None:
    """Move the mean towards the interval that ends with this demand."""
    for expert in experts:
        flat = layer * stats.num_experts + expert
        if stats.last_turn[flat] >= 0:
            newest = stats.turns[layer] + 1 - stats.last_turn[flat]
            stats.own[INTERVAL, flat] += NEWEST_SHARE * (newest - stats.own[INTERVAL, flat])


def own(num_experts: int) -> tuple[float, ...]:
    """Initially, every expert is expected after J turns."""
    return (float(num_experts),)


RULE = EvictionRule(weigh, visit, own)
