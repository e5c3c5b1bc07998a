"""Mixtral-Offloading (Eliseev and Mazur 2023, arXiv 2312.17238, sections 3.1-3.2): the next layer's gate, tried one layer early.

After a layer has run, the next layer's norm and gate are applied to the residual stream as it is, and the experts they pick are
loaded before inference goes on, as the FineMoE paper (section 6.1) describes the system; evicts by LRU. Ours differs from its own
publication in that (it copies beside the next layer's attention), in that the cache is one pool over all layers instead of k
experts a layer, and in that a speculative load takes a slot of it at once instead of waiting in a buffer. Quantisation is left
out.
"""

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions
from finemoe.policies.speculation import router_bytes, speculate_block


class MixtralOffloading(Policy):
    """Speculative loading at distance 1, whatever `prefetch_distance` says."""

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
