"""The predictions of a policy for a block of iterations."""

from dataclasses import dataclass

import numpy as np

from finemoe.errors import FinemoeError


@dataclass(frozen=True)
class Predictions:
    """Predictions for a block, n of them, ordered by moment.

    Events are the layers of its iterations, e = iteration · L + layer, both counted from 0.

    Attributes:
        moments: [n] when each becomes known; 2e is before the demand of event e, 2e + 1 after its gate.
        layers: [n] the predicted layer. probabilities: [n, J] float32, its distribution (maximum over an iteration's rows).
        selected: [n, J] bool, the experts to prefetch.
    """

    moments: np.ndarray
    layers: np.ndarray
    probabilities: np.ndarray
    selected: np.ndarray

    @classmethod
    def none(cls, num_experts: int) -> "Predictions":
        """Predictions for nothing."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, np.zeros((0, num_experts), dtype=np.float32), np.zeros((0, num_experts), dtype=np.bool_))

    @classmethod
    def of(cls, parts: list["Predictions"], num_experts: int) -> "Predictions":
        """Merge several predictions, ordered by moment and, within a moment, in the given order."""
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

    def checked(self, num_layers: int, num_experts: int, num_iterations: int) -> "Predictions":
        """Validate for a block of n iterations and return self: compiled code indexes with it without bounds checks.

        Raises:
            FinemoeError: the predictions are impossible for such a block.
        """
        count, last = len(self.moments), 2 * num_layers * num_iterations - 1
        if self.layers.shape != (count,) or {self.probabilities.shape, self.selected.shape} != {(count, num_experts)}:
            raise FinemoeError(f"a policy's predictions of a block have unequal lengths, or not {num_experts} experts each")
        if not (
            _are_within(self.moments, last) and _are_within(self.layers, num_layers - 1) and (np.diff(self.moments) >= 0).all()
        ):
            raise FinemoeError(
                f"a policy's predictions of a block must have ascending moments in 0..{last} and layers in 0..{num_layers - 1}"
            )
        if not (np.isfinite(self.probabilities).all() and (self.probabilities >= 0).all()):
            raise FinemoeError("a policy's predictions of a block must be finite probabilities, none below 0")
        return self


def _are_within(values: np.ndarray, last: int) -> bool:
    return not len(values) or bool(values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= last)
