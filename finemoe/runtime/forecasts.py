"""What the policy predicts, on its way from the matcher to the memories, and what came of it."""

from collections.abc import Sequence

import numpy as np

from finemoe.policies.base import Prediction
from finemoe.report import Counters
from finemoe.runtime.devices import DeviceMemories
from finemoe.runtime.iteration import Iteration

_NO_EXPERTS = np.empty(0, dtype=np.int64)


class Forecasts:
    """Passes predictions on, and keeps for each layer what was last predicted before its gate spoke.

    Args:
        memories: which fetch; counters: of recall; num_layers: L.
    """

    def __init__(self, memories: DeviceMemories, counters: Counters, num_layers: int) -> None:
        self._memories, self._counters = memories, counters
        self._iteration = Iteration(0)
        self._predictions: list[tuple[int, np.ndarray]] = [(-1, np.empty(0))] * num_layers
        self._has_run = [False] * num_layers

    def start_iteration(self, iteration: Iteration) -> None:
        """What is posted from now on is of this one, or comes too late."""
        self._iteration = iteration

    def post(self, number: int | None, predictions: Sequence[Prediction]) -> None:
        """What the policy predicts in the iteration of that number (called by the matcher, in whichever thread that works).

        Eviction hears of every layer; recall is measured, and experts are loaded, of those that may run.
        """
        told = []
        for prediction in predictions:
            may_run = self._may_run(prediction.layer)
            if may_run and number is not None and prediction.layer > self._iteration.layer:
                self._predictions[prediction.layer] = (number, prediction.probabilities)
            told.append(prediction if may_run else prediction.with_experts(_NO_EXPERTS))
        self._memories.post(number, told)

    def note_run(self, layer: int) -> None:
        """A layer has run, so that it is worth prefetching for."""
        self._has_run[layer] = True

    def count_recall(self, layer: int, demanded: np.ndarray) -> None:
        """A layer demands these experts, [n]: how many of them had been ranked among the first n?"""
        number, expected = self._predictions[layer]
        if number == self._iteration.number:
            ranked = np.argsort(-expected, kind="stable")[: len(demanded)]
            self._counters.recalled += len(set(ranked.tolist()).intersection(demanded.tolist()))
            self._counters.ranked += len(demanded)

    def _may_run(self, layer: int) -> bool:
        """False for layers that stood idle so far, such as a vision tower's where only text is served."""
        return self._has_run[layer] or self._iteration.number <= 1
