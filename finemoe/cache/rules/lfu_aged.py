"""Least frequently used with aging: a demand visit counts less the longer it is ago (half after 32 turns of its layer)."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics

DECAY = 2.0 ** (-1.0 / 32.0)
SCORE = 0  # own row


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """The expert of the lowest score goes."""
    for place in range(len(experts)):
        worth[place] = stats.own[SCORE, experts[place]]


def visit(stats: Statistics, layer: int, experts: np.ndarray) -> None:
    """Counts decay once whenever their layer runs, so that layers are compared alike."""
    base = layer * stats.num_experts
    for flat in range(base, base + stats.num_experts):
        stats.own[SCORE, flat] *= DECAY
    for expert in experts:
        stats.own[SCORE, base + expert] += 1.0


def own(num_experts: int) -> tuple[float, ...]:
    """No score."""
    return (0.0,)


RULE = EvictionRule(weigh, visit, own)
