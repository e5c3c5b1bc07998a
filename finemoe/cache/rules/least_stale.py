"""Least-Stale as SpecMD describes it (Hoang et al., arXiv 2602.03921): evict what is left from an earlier forward pass first.

Layers run in a fixed order. Experts loaded in the current pass were just used or are about to be used; experts from an earlier
pass are stale. Stale experts are evicted before fresh ones, and within each group those whose layer's turn is farthest away.
"""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import LAST_LAYER, PASS, Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Rank by freshness, then by how soon the layer's turn comes."""
    num_layers, next_layer = len(stats.turns), stats.clock[LAST_LAYER] + 1
    for place in range(len(experts)):
        flat = experts[place]
        until = stats.layer_of[flat] - next_layer
        until += num_layers * (until < 0)
        is_fresh = stats.last_pass[flat] == stats.clock[PASS]
        worth[place] = is_fresh * num_layers + (num_layers - 1 - until)


RULE = EvictionRule(weigh)
