"""`Policy.on_gate` in compiled code: an optional shortcut for executors that avoid calling Python in every layer."""

from typing import NamedTuple

import numpy as np


class GateStep(NamedTuple):
    """The compiled gates of one iteration.

    Attributes:
        address: the first of the two that `native.function_addresses` returns for a function of (table [n] int64, layer, probs
            [B, J] float32, selected [B, K] int64, layers [T] int64, probabilities [T, J] float32, counts [T] int64, experts [T,
            J] int64). The inputs are those of `on_gate`; the function fills the last four with its predictions (for each the
            layer, the distribution, the number of experts to prefetch, and their ids) and returns their number, 0 to T, or
            `maps.following.OUT_OF_PLACE` if that layer's gate cannot have fired. Its answers equal those of `on_gate`, bit for
            bit, and it never raises.
        table: first argument of the function. num_targets: T, the maximum number of predictions per gate.
        owner: keeps the function and the arrays whose addresses are in the table alive.
    """

    address: int
    table: np.ndarray
    num_targets: int
    owner: object
