"""`Policy.on_gate` in compiled code: what a policy may offer to executors that would rather not ask Python in every layer."""

from typing import NamedTuple

import numpy as np


class GateStep(NamedTuple):
    """One iteration's.

    Attributes:
        address: of a function as `native.function_addresses` gives it (the first of the two), of (table [n] int64, layer, probs
            [B, J] float32, selected [B, K] int64, layers [T] int64, probabilities [T, J] float32, counts [T] int64, experts [T,
            J] int64): it takes what `on_gate` takes of the layer, fills the last four with its predictions (of each the layer,
            the distribution, how many experts are wanted, and which), and returns how many it makes, from 0 to T;
            `maps.following.OUT_OF_PLACE` if that layer cannot have spoken. It says what `on_gate` would say, bit for bit, and
            raises nothing.
        table: what the function is handed. num_targets: T, how many predictions a gate makes at most.
        owner: whatever keeps the function, and the arrays whose addresses are in the table, as long as this lives.
    """

    address: int
    table: np.ndarray
    num_targets: int
    owner: object
