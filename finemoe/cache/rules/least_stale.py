"""Least-Stale as SpecMD describes it (Hoang et al., arXiv 2602.03921): what an earlier forward pass left behind goes first.

Layers run in a fixed order, so what this pass has loaded is either past or about to be used, and what an earlier pass left is
stale. Stale experts go before fresh ones, and of either those whose layer's turn is farthest away.
"""

import numpy as np

from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import LAST_LAYER, PASS, Statistics


def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Fresh or not, then how soon the layer's turn comes."""
    num_layers, next_layer = len(stats.turns), stats.clock[LAST_LAYER] + 1
    for place in range(len(experts)):
        flat = experts[place]
        until = stats.layer_of[flat] - next_layer
        until += num_layers * (until < 0)
        is_fresh = stats.last_pass[flat] == stats.clock[PASS]
        worth[place] = is_fresh * num_layers + (num_layers - 1 - until)


RULE = EvictionRule(weigh)
