"""The oracle knows the future: an upper bound for every system. An addition to the paper; it runs only in replay."""

from collections.abc import Sequence

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction
from finemoe.policies.block import Block
from finemoe.policies.predictions import Predictions


class Oracle(Policy):
    """Loads exactly what the layer d ahead will demand, and evicts by Belady's rule."""

    needs_future = True
    default_eviction = "belady"

    def foresee(self, demanded: Sequence[np.ndarray]) -> None:
        self._demanded = demanded

    def start_iteration(self, context: Context) -> list[Prediction]:
        return [self._certainty(layer) for layer in range(self.setup.prefetch_distance)]

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        target = layer + self.setup.prefetch_distance
        return [self._certainty(target)] if target < self.setup.num_layers else []

    def end_iteration(self) -> None:
        return None

    def predict_block(self, block: Block) -> Predictions:
        """Predict what the block itself records as demanded."""
        selected = block.demanded.reshape(-1, self.setup.num_experts)
        counts = selected.sum(axis=1, keepdims=True)
        probabilities = np.where(selected, 1.0 / np.maximum(counts, 1), 0.0).astype(np.float32)
        layers = np.tile(np.arange(self.setup.num_layers), block.num_iterations)
        return Predictions(block.told(self.setup.prefetch_distance).reshape(-1), layers, probabilities, selected)

    def _certainty(self, layer: int) -> Prediction:
        experts = self._demanded[layer]
        probabilities = np.zeros(self.setup.num_experts, dtype=np.float32)
        probabilities[experts] = 1.0 / max(len(experts), 1)
        return Prediction(layer, probabilities, experts)
