"""Eviction rules, one a file; the registry by which they are chosen."""

from collections.abc import Callable

import numpy as np

from finemoe.cache.eviction.base import EvictionRule
from finemoe.cache.eviction.finemoe import FineMoEEviction
from finemoe.cache.eviction.lfu import LFU
from finemoe.cache.eviction.lru import LRU
from finemoe.errors import FinemoeError

RULES: dict[str, Callable[[int, int], EvictionRule]] = {"finemoe": FineMoEEviction, "lfu": LFU, "lru": LRU}


def make_rule(name: str, num_layers: int, num_experts: int, expected: np.ndarray) -> EvictionRule:
    """The rule of that name for a model of L layers and J experts.

    Args:
        expected: [L, J] probabilities that the policy keeps up to date; only some rules read them.
    Raises:
        FinemoeError: no rule has that name.
    """
    if name not in RULES:
        raise FinemoeError(f"unknown eviction rule {name!r}; known: {', '.join(sorted(RULES))}")
    rule = RULES[name](num_layers, num_experts)
    rule.expected = expected
    return rule
