"""Mixtral-Offloading (Eliseev and Mazur 2023, arXiv 2312.17238, sections 3.1-3.2): the next layer's gate, one layer early.

After a layer has run, the next layer's norm and gate are applied to the unchanged residual stream, and the experts that they
select are loaded before inference continues, as the FineMoE paper (section 6.1) describes the system. Evicts by LRU. Our version
differs from the original publication in three ways: the original copies while the next layer's attention runs, it has a cache of
k experts per layer instead of one pool over all layers, and its speculative loads wait in a buffer instead of taking a slot of
the cache at once. Quantisation is left out.
"""

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions
from finemoe.policies.speculation import router_bytes, speculate_block


class MixtralOffloading(Policy):
    """Speculative loading at distance 1, regardless of `prefetch_distance`."""

    lookahead = (1,)
    is_synchronous = True
    default_eviction = "lru"

    def start_iteration(self, context: Context) -> list[Prediction]:
        return []

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        if lookahead is None or layer + 1 >= self.setup.num_layers:
            return []
        return [self.wanted(layer + 1, lookahead[0])]

    def predict_block(self, block: Block) -> Predictions | None:
        return speculate_block(self, block, stride=1)

    def read_bytes(self, num_rows: np.ndarray, hidden_size: int) -> np.ndarray:
        """A gate applies the next layer's router to all rows at once."""
        return self._at_gates(np.full(len(num_rows), router_bytes(self.setup.num_experts, hidden_size)), distance=1)

    def end_iteration(self) -> None:
        return None
