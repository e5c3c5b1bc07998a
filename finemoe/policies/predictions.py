"""What a policy predicts over a block of iterations."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """Predictions of a block, n of them, ordered by moment.

    Events are the layers of its iterations, e = iteration · L + layer, both counted from 0.

    Attributes:
        moments: [n] when each comes to be known; 2e is before the demand of event e, 2e + 1 after its gate.
        layers: [n] the layer predicted. probabilities: [n, J] float32, its distribution (maximum over an iteration's rows).
        selected: [n, J] bool, the experts to be loaded ahead.
    """

    moments: np.ndarray
    layers: np.ndarray
    probabilities: np.ndarray
    selected: np.ndarray

    @classmethod
    def none(cls, num_experts: int) -> "Predictions":
        """Nothing is predicted."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, np.zeros((0, num_experts), dtype=np.float32), np.zeros((0, num_experts), dtype=np.bool_))

    @classmethod
    def of(cls, parts: list["Predictions"], num_experts: int) -> "Predictions":
        """Several predictions as one, ordered by moment and, within a moment, as they were given."""
        if not parts:
            return cls.none(num_experts)
        moments = np.concatenate([part.moments for part in parts])
        if len(parts) == 1 and (np.diff(moments) >= 0).all():
            return parts[0]
        order = np.argsort(moments, kind="stable")
        return cls(
            moments[order],
            np.concatenate([part.layers for part in parts])[order],
            np.concatenate([part.probabilities for part in parts])[order],
            np.concatenate([part.selected for part in parts])[order],
        )
