"""On-demand loading: no prediction at all, the honest floor of every comparison."""

import numpy as np

from finemoe.policies.base import Context, Policy, Prediction


class OnDemand(Policy):
    """Loads what the gate selected when it is missing, and nothing else; evicts by LRU unless told otherwise."""

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
