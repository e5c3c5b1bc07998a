"""On-demand loading without prediction: the baseline of every comparison."""

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction


class OnDemand(Policy):
    """Loads missing experts that the gate selected, and nothing else; evicts by LRU unless another rule is chosen."""

    needs_context = False
    default_eviction = "lru"

    def start_iteration(self, context: Context) -> list[Prediction]:
        return []

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        return []

    def end_iteration(self) -> None:
        return None
