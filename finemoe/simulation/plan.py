"""What a policy predicts over a block of iterations: the form in which the compiled cache takes it."""

from dataclasses import dataclass

import numpy as np

from finemoe.cache.prefetch_queue import prefetch_priorities
from finemoe.policies.base import Prediction


@dataclass(frozen=True)
class Predictions:
    """Predictions of a block, n of them, ordered by moment.

    Attributes:
        moments: [n] when each comes to be known; 2e is before the demand of event e, 2e + 1 after its gate.
        layers: [n] the layer predicted. rows: [n, J] the distribution (maximum over an iteration's rows).
        selected: [n, J] the experts prefetched.
    """

    moments: np.ndarray
    layers: np.ndarray
    rows: np.ndarray
    selected: np.ndarray

    @classmethod
    def none(cls, num_experts: int) -> "Predictions":
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, np.zeros((0, num_experts), dtype=np.float32), np.zeros((0, num_experts), dtype=np.bool_))

    @classmethod
    def of(cls, parts: list["Predictions"], num_experts: int) -> "Predictions":
        """Several predictions as one, ordered by moment and, within a moment, as they were given."""
        if not parts:
            return cls.none(num_experts)
        moments = np.concatenate([part.moments for part in parts])
        order = np.argsort(moments, kind="stable")
        return cls(
            moments[order],
            np.concatenate([part.layers for part in parts])[order],
            np.concatenate([part.rows for part in parts])[order],
            np.concatenate([part.selected for part in parts])[order],
        )

    def targets(self, num_layers: int) -> np.ndarray:
        """The event that each prediction is about, [n], or -1 where it came no earlier than that event's gate."""
        events = self.moments // 2
        targets = events - events % num_layers + self.layers
        return np.where(2 * targets + 1 > self.moments, targets, -1)

    def arrays(self, num_events: int, num_layers: int) -> tuple[np.ndarray, ...]:
        """(update_begins, update_layers, update_rows, rows, prefetch_begins, prefetches) as in simulation.block.Events.

        Prefetches of a moment are ordered by priority, equal ones as they were asked for (section 4.5).
        """
        num_moments = 2 * num_events
        updates = np.bincount(self.moments, minlength=num_moments)
        owners, experts = np.nonzero(self.selected)
        moments, layers = self.moments[owners], self.layers[owners]
        current = np.where(moments % 2 == 1, moments // 2 % num_layers, -1)
        order = np.lexsort((-prefetch_priorities(self.rows[owners, experts], layers, current), moments))
        loads = np.bincount(moments, minlength=num_moments)
        return (
            np.concatenate([[0], np.cumsum(updates)]).astype(np.int64),
            self.layers,
            np.arange(len(self.layers)),
            self.rows,
            np.concatenate([[0], np.cumsum(loads)]).astype(np.int64),
            (layers * self.rows.shape[1] + experts)[order],
        )


class Notes:
    """Takes down what a policy answers, call by call."""

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._moments: list[int] = []
        self._layers: list[int] = []
        self._rows: list[np.ndarray] = []
        self._experts: list[np.ndarray] = []

    def add(self, moment: int, answer: list[Prediction]) -> None:
        """What it answered at a moment (numbered as in Predictions)."""
        for prediction in answer:
            self._moments.append(moment)
            self._layers.append(prediction.layer)
            self._rows.append(prediction.probabilities)
            self._experts.append(prediction.experts)

    def predictions(self) -> Predictions:
        """All of it."""
        if not self._moments:
            return Predictions.none(self._num_experts)
        selected = np.zeros((len(self._moments), self._num_experts), dtype=np.bool_)
        owners = np.repeat(np.arange(len(self._moments)), [len(experts) for experts in self._experts])
        selected[owners, np.concatenate(self._experts)] = True
        return Predictions(np.array(self._moments), np.array(self._layers), np.stack(self._rows), selected)
