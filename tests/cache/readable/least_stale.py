"""Least-Stale as SpecMD describes it (Hoang et al., arXiv 2602.03921): what an earlier forward pass left behind goes first.

Layers run in a fixed order, so what this pass has loaded is either past or about to be used, and what an earlier pass left is
stale. Stale experts go before fresh ones, and of either those whose layer's turn is farthest away.
"""

import numpy as np

from tests.cache.readable.base import EvictionRule


class LeastStale(EvictionRule):
    """A pass begins when a layer runs that is not behind the last one."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        super().__init__(num_layers, num_experts)
        self._pass, self._layer = 0, -1
        self._last_pass = np.full((num_layers, num_experts), -1, dtype=np.int64)

    def visit(self, layer: int, experts: np.ndarray) -> None:
        super().visit(layer, experts)
        self._pass += layer <= self._layer
        self._layer = layer
        self._last_pass[layer, experts] = self._pass

    def worth(self, candidates: np.ndarray) -> np.ndarray:
        num_layers, num_experts = self.frequency.shape
        turns = (candidates // num_experts - self._layer - 1) % num_layers
        is_fresh = self._last_pass.reshape(-1)[candidates] == self._pass
        return is_fresh * num_layers + (num_layers - 1 - turns)
