"""What the policy predicts, on its way from the matcher to the memories, and what came of it."""

from collections.abc import Sequence

import numpy as np

from finemoe.compiling import njit
from finemoe.policies.base import Prediction
from finemoe.report import Counters
from finemoe.runtime.devices import DeviceMemories

_NO_EXPERTS = np.empty(0, dtype=np.int64)


class Forecasts:
    """Passes predictions on, and keeps for each layer what was last predicted before its gate spoke.

    Args:
        memories: which fetch; counters: of recall; num_layers: L.
    """

    def __init__(self, memories: DeviceMemories, counters: Counters, num_layers: int) -> None:
        self._memories, self._counters = memories, counters
        self._predictions: list[tuple[int, np.ndarray]] = [(-1, np.empty(0, dtype=np.float32))] * num_layers
        self._has_run = [False] * num_layers

    def post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """What the policy predicts in the iteration of that number (called by the matcher, in whichever thread that works).

        Eviction hears of every layer; recall is measured, and experts are loaded, of those that may run.
        """
        told = []
        for prediction in predictions:
            may_run = iteration is None or iteration <= 1 or self._has_run[prediction.layer]  # not what stood idle so far
            if may_run and iteration is not None and prediction.layer > self._memories.running_layer:
                self._predictions[prediction.layer] = (iteration, prediction.probabilities)
            told.append(prediction if may_run else prediction.with_experts(_NO_EXPERTS))
        self._memories.post(iteration, told)

    def note_run(self, layer: int) -> None:
        """A layer has run, so that it is worth prefetching for."""
        self._has_run[layer] = True

    def count_recall(self, iteration: int, layer: int, demanded: Sequence[int]) -> None:
        """A layer has demanded these experts, ids: how many of them had been ranked among the first n?"""
        number, expected = self._predictions[layer]
        if number == iteration:
            self._counters.recalled += num_recalled(expected, np.array(demanded, dtype=np.int64))
            self._counters.ranked += len(demanded)


@njit(cache=True)
def num_recalled(expected, demanded):  # type: ignore[no-untyped-def]
    """How many of n experts, [n] ids, are among the n that are expected most, [J]; the lower one first where two are equal."""
    recalled = 0
    for expert in demanded:
        rank = 0
        for other in range(len(expected)):
            rank += expected[other] > expected[expert] or (expected[other] == expected[expert] and other < expert)
        recalled += rank < len(demanded)
    return recalled
