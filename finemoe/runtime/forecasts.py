"""What the policy predicts, on its way from the matcher to the memories, and what came of it."""

from collections.abc import Sequence

import numpy as np

from finemoe.compiling import njit
from finemoe.policies.base import Prediction
from finemoe.policies.gate_step import GateStep
from finemoe.report import Counters
from finemoe.runtime.devices import DeviceMemories


class Forecasts:
    """Passes predictions on, and compares for each layer what was last predicted before its gate spoke with what that said.

    Eviction hears of every layer; recall is measured, and experts are loaded, of those that may run.

    Args:
        memories: which fetch, and keep what was predicted; counters: of recall.
    """

    def __init__(self, memories: DeviceMemories, counters: Counters) -> None:
        self._memories, self._counters = memories, counters
        self._boards = [memory.board for memory in memories.memories]

    def post(self, iteration: int | None, predictions: Sequence[Prediction]) -> None:
        """What the policy predicts in the iteration of that number (called by the matcher, in whichever thread that works)."""
        self._memories.post(iteration, predictions)

    def speak(self, iteration: int | None, step: GateStep, layer: int, probs: np.ndarray) -> None:
        """Likewise what its step predicts when the gate of a layer has spoken, [B, J] float32, where there is one device."""
        self._memories.memories[0].speak(iteration, step, layer, probs)

    def note_run(self, layer: int) -> None:
        """A layer has run, so that it is worth prefetching for."""
        for board in self._boards:
            board.has_run[layer] = True

    def count_recall(self, iteration: int, layer: int, demanded: Sequence[int]) -> None:
        """A layer has demanded these experts, ids: how many of them had been ranked among the first n?"""
        board = self._boards[0]
        if board.foreseen_in[layer] == iteration:
            self._counters.recalled += num_recalled(board.foreseen[layer], np.array(demanded, dtype=np.int64))
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
