"""Least frequently used with aging: the weight of a demand visit decays with time (half after 32 turns of its layer)."""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import Statistics

DECAY = 2.0 ** (-1.0 / 32.0)
SCORE = 0  # own row


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Worth is the decayed count."""
    for place in range(len(experts)):
        worth[place] = stats.own[SCORE, experts[place]]


def visit(stats: Statistics, layer: int, experts: np.ndarray) -> None:
    """Decay counts once per turn of their layer, which makes layers comparable."""
    base = layer * stats.num_experts
    for flat in range(base, base + stats.num_experts):
        stats.own[SCORE, flat] *= DECAY
    for expert in experts:
        stats.own[SCORE, base + expert] += 1.0


def own(num_experts: int) -> tuple[float, ...]:
    """Initially, every score is 0."""
    return (0.0,)


RULE = EvictionRule(weigh, visit, own)
