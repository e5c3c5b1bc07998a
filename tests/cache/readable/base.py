"""What every eviction rule has: it sees demand visits and names the weakest of the experts that may go."""

from abc import ABC, abstractmethod

import numpy as np


class EvictionRule(ABC):
    """State of one rule for L layers of J experts.

    Attributes:
        expected: [L, J] float32, the last distribution predicted for each layer, 1/J before there is any; the executor writes
            it, and rules that use prediction read it.
        frequency: [L, J] 1 + all demand visits so far, kept across evictions.
        needs_future: whether the rule can only run where the future is known (replay).
    """

    needs_future = False

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self.expected = np.full((num_layers, num_experts), 1.0 / num_experts, dtype=np.float32)
        self.frequency = np.ones((num_layers, num_experts), dtype=np.int64)

    def visit(self, layer: int, experts: np.ndarray) -> None:
        """The demanded set of a layer, [n] expert ids, once per event."""
        self.frequency[layer, experts] += 1

    def hear(self, layer: int, probabilities: np.ndarray) -> None:
        """A layer's distribution is predicted for its coming turn, [J]."""
        self.expected[layer] = probabilities

    @abstractmethod
    def worth(self, candidates: np.ndarray) -> np.ndarray:
        """What it is worth to keep each candidate, [n] (flat ids layer·J + expert); the least worthy is evicted."""

    def victim(self, candidates: np.ndarray, current_layer: int) -> int:
        """The candidate to evict; ties fall to the lower frequency, then to the layer whose turn is farthest away.

        Args:
            candidates: [n] flat ids in ascending order, n >= 1; current_layer: the layer that runs (-1 before the first).
        """
        worth = self.worth(candidates)
        tied = candidates[worth == worth.min()]
        if len(tied) > 1:
            frequency = self.frequency.reshape(-1)[tied]
            tied = tied[frequency == frequency.min()]
        if len(tied) > 1:
            num_layers, num_experts = self.frequency.shape
            turns = (tied // num_experts - current_layer - 1) % num_layers
            tied = tied[turns == turns.max()]
        return int(tied[0])
