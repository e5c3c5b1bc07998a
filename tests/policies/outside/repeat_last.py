"""Repeat-last: every token is expected to activate what the one before it activated (a first-order baseline)."""

import numpy as np

from finemoe.policies.base import Context, Policy, PolicySetup, Prediction


class RepeatLast(Policy):
    """The experts of the last iteration's last row, d layers ahead, also across requests; evicts by LFU."""

    default_eviction = "lfu"

    def __init__(self, setup: PolicySetup) -> None:
        super().__init__(setup)
        self._last = np.zeros((setup.num_layers, setup.num_experts), dtype=np.float32)

    def start_iteration(self, context: Context) -> list[Prediction]:
        return []

    def on_gate(
        self, layer: int, probs: np.ndarray, experts: np.ndarray, lookahead: np.ndarray | None = None
    ) -> list[Prediction]:
        target = layer + self.setup.prefetch_distance
        answer = [self.wanted(target, self._last[None, target])] if self._knows(target) else []
        self._last[layer] = 0.0
        self._last[layer, experts[-1]] = 1.0 / max(experts.shape[1], 1)
        return answer

    def end_iteration(self) -> None:
        return None

    def _knows(self, layer: int) -> bool:
        return layer < self.setup.num_layers and bool(self._last[layer].any())
