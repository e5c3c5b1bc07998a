"""What a forecaster of experts knows: arrays that compiled steps change (`maps.forecast_kernels`).

Sizes, and letters in shapes: L layers, J experts, K of them a token; H layers that are foretold; N units of a layer's network; F
entries kept of each gate; M rows remembered; S rows of an iteration that are asked about at most; A strides at which routers are
applied ahead; Q = H·J.
"""

from typing import NamedTuple

import numpy as np

# Places in `ForecastState.counters`: the slot that the next row takes; how many slots were taken so far; how many rows of this
# iteration are remembered, and how many asked about; B; whether it is a prefill; whether it continues the one before, row by row;
# which of the two tables of affinities is its own; K; the layer heard last, or NONE; whether nothing is learned.
NEXT_SLOT, FILLED, NUM_KEPT, NUM_ASKED, NUM_ROWS, IS_PREFILL, CONTINUES, TABLE, TOP_K, LAST_LAYER, IS_FROZEN, NUM_COUNTERS = (
    range(12)
)
NONE = -1  # for a slot, a row or a layer that there is not
UNUSABLE = np.float32(-1e30)  # the affinity to a slot that holds no row of an earlier iteration


class ForecastState(NamedTuple):
    """One forecaster.

    Attributes:
        counters: [NUM_COUNTERS] int64, see the constants. rate: [1] float32 the step of learning.
        first_input: [L] where the inputs of each layer's network begin in `inputs`: J for every layer up to its own, then J for
            every layer that it foretells (of the token before).
        inputs: [., N], hidden_bias: [L, N], outputs: [L, N, Q], output_bias: [L, Q] the networks.
        across: [L, Q, N] `outputs` once more, the other way round.
        vote_gains: [L, Q] how much it counts what similar rows demanded; ahead_gains: [L, A, J] likewise what routers applied
            ahead say. strides: [A] in layers.
        demands: [L, J] how many rows demanded each expert. rows: [L] of how many.
        ids: [L, M, F] of each row remembered the experts demanded, then the most probable others; values: [L, M, F] square roots
            of their probabilities, 0 where there are fewer; demanded: [L, M] how many of them were demanded.
        before, after: [M] slots of the neighbouring tokens of the sequence, or NONE.
        slots: [M] of this iteration's rows; numbers: [M] which rows of the gates they are.
        asked: [S] slots of those asked about; previous: [S] of the tokens before them, or NONE; origins: [S] the row of the last
            iteration that each follows, or NONE.
        affinities: [2, S, M] how similar each row is to each remembered.
        num_inputs: [L, S], input_rows, input_values: [L, S, (L + H)·F] what each network was last given; votes: [L, S, Q] and
            ahead: [L, S, A, J] beside; hidden: [L, S, N], probs: [L, S, Q] what it made of that.
        is_pending: [L] whether it has not learned from it yet.
    """

    counters: np.ndarray
    rate: np.ndarray
    first_input: np.ndarray
    inputs: np.ndarray
    hidden_bias: np.ndarray
    outputs: np.ndarray
    across: np.ndarray
    output_bias: np.ndarray
    vote_gains: np.ndarray
    ahead_gains: np.ndarray
    strides: np.ndarray
    demands: np.ndarray
    rows: np.ndarray
    ids: np.ndarray
    values: np.ndarray
    demanded: np.ndarray
    before: np.ndarray
    after: np.ndarray
    slots: np.ndarray
    numbers: np.ndarray
    asked: np.ndarray
    previous: np.ndarray
    origins: np.ndarray
    affinities: np.ndarray
    num_inputs: np.ndarray
    input_rows: np.ndarray
    input_values: np.ndarray
    hidden: np.ndarray
    votes: np.ndarray
    ahead: np.ndarray
    probs: np.ndarray
    is_pending: np.ndarray


LEARNED = ("inputs", "hidden_bias", "outputs", "output_bias", "vote_gains", "ahead_gains", "demands", "rows")


def new_state(
    num_layers: int,
    num_experts: int,
    top_k: int,
    horizon: int,
    num_units: int,
    strides: tuple[int, ...],
    memory_rows: int,
    asked_rows: int,
    seed: int,
) -> ForecastState:
    """A forecaster that has heard nothing, its weights drawn at random."""
    rng = np.random.default_rng(seed)
    entries, outputs, num_strides = min(num_experts, 2 * top_k), horizon * num_experts, len(strides)
    sizes = num_experts * (np.arange(1, num_layers + 1) + horizon)
    rows = (num_layers, asked_rows)
    odds = np.log(min(top_k / num_experts, 0.9) / (1 - min(top_k / num_experts, 0.9)))
    counters = np.zeros(NUM_COUNTERS, dtype=np.int64)
    counters[TOP_K], counters[LAST_LAYER] = top_k, NONE
    drawn = _drawn(rng, 0.1, int(sizes.sum()), num_units), _drawn(rng, 0.03, num_layers, num_units, outputs)
    return ForecastState(
        counters=counters,
        rate=np.zeros(1, dtype=np.float32),
        first_input=np.cumsum(sizes) - sizes,
        inputs=drawn[0],
        hidden_bias=_zeros(num_layers, num_units),
        outputs=drawn[1],
        across=drawn[1].transpose(0, 2, 1).copy(),
        output_bias=np.full((num_layers, outputs), odds, dtype=np.float32),
        vote_gains=np.full((num_layers, outputs), 2.0, dtype=np.float32),
        ahead_gains=np.full((num_layers, num_strides, num_experts), 1.0, dtype=np.float32),
        strides=np.array(strides, dtype=np.int64),
        demands=np.zeros((num_layers, num_experts), dtype=np.int64),
        rows=np.zeros(num_layers, dtype=np.int64),
        ids=np.zeros((num_layers, memory_rows, entries), dtype=np.int32),
        values=_zeros(num_layers, memory_rows, entries),
        demanded=np.zeros((num_layers, memory_rows), dtype=np.int32),
        before=np.full(memory_rows, NONE, dtype=np.int64),
        after=np.full(memory_rows, NONE, dtype=np.int64),
        slots=np.zeros(memory_rows, dtype=np.int64),
        numbers=np.zeros(memory_rows, dtype=np.int64),
        asked=np.zeros(asked_rows, dtype=np.int64),
        previous=np.zeros(asked_rows, dtype=np.int64),
        origins=np.zeros(asked_rows, dtype=np.int64),
        affinities=np.full((2, asked_rows, memory_rows), UNUSABLE, dtype=np.float32),
        num_inputs=np.zeros(rows, dtype=np.int64),
        input_rows=np.zeros((*rows, (num_layers + horizon) * entries), dtype=np.int64),
        input_values=_zeros(*rows, (num_layers + horizon) * entries),
        hidden=_zeros(*rows, num_units),
        votes=_zeros(*rows, outputs),
        ahead=_zeros(*rows, num_strides, num_experts),
        probs=_zeros(*rows, outputs),
        is_pending=np.zeros(num_layers, dtype=np.bool_),
    )


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def _drawn(rng: np.random.Generator, deviation: float, *shape: int) -> np.ndarray:
    drawn: np.ndarray = rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
    return drawn
