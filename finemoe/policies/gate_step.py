"""`Policy.on_gate` in compiled code: what a policy may offer to executors that would rather not ask Python in every layer."""

from typing import NamedTuple

import numpy as np


class GateStep(NamedTuple):
    """One iteration's.

    Attributes:
        address: of a function as `native.function_addresses` gives it (the first of the two), of (table [n] int64, layer, probs
            [B, J] float32, probabilities [J] float32, experts [J] int64): it takes the layer's distribution, fills the last two
            with what is predicted of the layer `distance` ahead, and returns how many experts are wanted;
            `maps.following.NOTHING` if nothing is predicted, `maps.following.OUT_OF_PLACE` if that layer cannot have spoken. It
            says what `on_gate` would say, bit for bit, and raises nothing.
        table: what the function is handed. distance: how many layers ahead it predicts.
        owner: whatever keeps the function, and the arrays whose addresses are in the table, as long as this lives.
    """

    address: int
    table: np.ndarray
    distance: int
    owner: object
