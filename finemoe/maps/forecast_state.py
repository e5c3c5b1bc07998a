"""The state of an expert forecaster: arrays that compiled steps change (`maps.forecast_kernels`).

Letters in shapes: L layers, J experts, K of them per token; H distances in layers of the forecasts, Q = H·J; N units of a layer's
network; E entries kept of each gate; M remembered rows, S sampled rows of an iteration at most; A strides at which routers are
applied ahead; F layers forecast before any gate; V known tokens, and R occurrences kept of each.
"""

import functools
from typing import NamedTuple

import numpy as np

from finemoe.compiling import borrowing

# Places in `ForecastState.counters`: the slot for the next row; the number of slots filled so far; the number of this iteration's
# rows that are remembered, and that are sampled; B; whether it is a prefill; whether it continues the previous iteration row by
# row; which of the two tables of affinities it uses; K; the last layer seen, or NONE; when to learn.
NEXT_SLOT, FILLED, NUM_KEPT, NUM_ASKED, NUM_ROWS, IS_PREFILL = range(6)
CONTINUES, TABLE, TOP_K, LAST_LAYER, LEARNS, NUM_COUNTERS = range(6, 12)
ROWS, TOKENS = range(2)  # in `Outputs.reliance`
ALWAYS, WITHIN_REQUESTS, NEVER = range(3)
MOST_EXPERTS = (1 << 16) - 1  # of a layer, since ids are stored in 16 bits
NOBODY = np.uint16(MOST_EXPERTS)  # not an expert's id
OCCURRENCES = 8  # R
NONE = -1  # no slot, row, layer or token
NEWEST = -2  # minus its place: a token that has just been added there
UNUSABLE = np.float32(-1e30)  # affinity to a slot that holds no row of an earlier iteration

inner = functools.partial(borrowing, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # called only from compiled code


class Networks(NamedTuple):
    """The networks without their output layers.

    Attributes:
        rates: [2] float32 learning rates: permanent; within requests only.
        first_input: [L] where the inputs of each layer's network begin in `inputs`: J for every layer up to its own, then J for
            every layer that it forecasts (of the previous token).
        inputs: [., N], hidden_bias: [L, N]. distances: [H], strides: [A] in layers, ascending.
        demands: [L, J] number of rows that demanded each expert. num_heard: [L] number of rows in total.
    """

    rates: np.ndarray
    first_input: np.ndarray
    inputs: np.ndarray
    hidden_bias: np.ndarray
    distances: np.ndarray
    strides: np.ndarray
    demands: np.ndarray
    num_heard: np.ndarray


class Outputs(NamedTuple):
    """How log odds are computed from the networks' units and from other evidence.

    Attributes:
        weights: [L, N, Q], bias: [L, Q].
        vote_gains: [L, Q] weight of what similar rows demanded, token_gains: [L, Q] of what the same token demanded elsewhere.
        ahead_gains: [L, A, J] weight of routers applied ahead.
        reliance: [2, H] weight of similar rows, and of tokens, at a distance, for all layers and experts.
    """

    weights: np.ndarray
    bias: np.ndarray
    vote_gains: np.ndarray
    token_gains: np.ndarray
    ahead_gains: np.ndarray
    reliance: np.ndarray


class Memory(NamedTuple):
    """The latest M rows of the running request.

    Attributes:
        ids: [L, M, E] for each row the demanded experts, then the most probable others; values: [L, M, E] square roots of their
            probabilities, 0 for unused entries; demanded: [L, M] number of demanded experts.
        before, after: [M] slots of the neighbouring tokens of the sequence, or NONE.
        slots: [M] of this iteration's rows; numbers: [M] which rows of the gates they are.
        asked: [S] slots of the sampled rows; previous: [S] slots of the tokens before them, or NONE; origins: [S] the row of the
            last iteration that each follows, or NONE.
        affinities: [2, S, M] similarity of each sampled row to each remembered row.
    """

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


class Tokens(NamedTuple):
    """What tokens demanded where they occurred, in any request.

    Attributes:
        heard: [V] number of occurrences of each token. experts: [V, R, L, K] what it demanded in the latest ones, NOBODY for
            unused entries and if not (yet) known.
        known: [M] tokens of this iteration's remembered rows, or NONE; places: [M] which of R this occurrence is.
        asked: [S] tokens of the sampled rows, or NONE.
        votes, probs: [F, S, J] their votes for the first layers, and the resulting forecast; gains: [F, J] weight of the votes.
    """

    heard: np.ndarray
    experts: np.ndarray
    known: np.ndarray
    places: np.ndarray
    asked: np.ndarray
    votes: np.ndarray
    probs: np.ndarray
    gains: np.ndarray


class Answers(NamedTuple):
    """Inputs and outputs of the last run of each layer's network, per row.

    Attributes:
        num_inputs: [L, S], input_rows, input_values: [L, S, (L + H)·E] the inputs; votes, token_votes: [L, S, Q] and ahead:
            [L, S, A, J] the other evidence. hidden: [L, S, N], probs: [L, S, Q] the results.
        is_pending: [L] whether the network has not learned from it yet.
    """

    num_inputs: np.ndarray
    input_rows: np.ndarray
    input_values: np.ndarray
    votes: np.ndarray
    token_votes: np.ndarray
    ahead: np.ndarray
    hidden: np.ndarray
    probs: np.ndarray
    is_pending: np.ndarray


class Scratch(NamedTuple):
    """Scratch arrays without lasting content: compiled code allocates no arrays and counts no references.

    Attributes:
        left, own: [J]. totals: [H]. active, active_values: [N] units above 0. wrong, steps, errors: [Q]. blame: [N]. nowhere: [S]
            always filled with NONE.
    """

    left: np.ndarray
    own: np.ndarray
    totals: np.ndarray
    active: np.ndarray
    active_values: np.ndarray
    wrong: np.ndarray
    steps: np.ndarray
    errors: np.ndarray
    blame: np.ndarray
    nowhere: np.ndarray


class ForecastState(NamedTuple):
    """The state of one forecaster.

    Attributes:
        counters: [NUM_COUNTERS] int64, see the constants.
        kept: the outputs that every request starts with, if learning is within requests only; otherwise without layers.
    """

    counters: np.ndarray
    networks: Networks
    outputs: Outputs
    kept: Outputs
    memory: Memory
    tokens: Tokens
    answers: Answers
    scratch: Scratch


class Sizes(NamedTuple):
    """L, J, K, distances, N, strides, M, S, F and V."""

    num_layers: int
    num_experts: int
    top_k: int
    distances: tuple[int, ...]
    num_units: int
    strides: tuple[int, ...]
    memory_rows: int
    asked_rows: int
    num_first: int = 1
    num_tokens: int = 1

    @property
    def num_distances(self) -> int:
        """H."""
        return len(self.distances)

    @property
    def num_entries(self) -> int:
        """E."""
        return min(self.num_experts, 2 * self.top_k)


def new_state(sizes: Sizes, seed: int) -> ForecastState:
    """A forecaster without any data, with random initial weights."""
    rng = np.random.default_rng(seed)
    counters = np.zeros(NUM_COUNTERS, dtype=np.int64)
    counters[TOP_K], counters[LAST_LAYER] = sizes.top_k, NONE
    outputs = _new_outputs(sizes, rng)
    nothing = Outputs(*(array[:0].copy() for array in outputs))
    networks, room = _new_networks(sizes, rng), (_new_memory(sizes), _new_tokens(sizes), _new_answers(sizes), new_scratch(sizes))
    return ForecastState(counters, networks, outputs, nothing, *room)


def _new_networks(sizes: Sizes, rng: np.random.Generator) -> Networks:
    num_layers = sizes.num_layers
    num_inputs = sizes.num_experts * (np.arange(1, num_layers + 1) + sizes.num_distances)
    return Networks(
        rates=_zeros(2),
        first_input=np.cumsum(num_inputs) - num_inputs,
        inputs=_drawn(rng, 0.45 / np.sqrt(num_layers / 2 + sizes.num_distances), int(num_inputs.sum()), sizes.num_units),
        hidden_bias=_zeros(num_layers, sizes.num_units),
        distances=np.array(sizes.distances, dtype=np.int64),
        strides=np.array(sizes.strides, dtype=np.int64),
        demands=np.zeros((num_layers, sizes.num_experts), dtype=np.int64),
        num_heard=np.zeros(num_layers, dtype=np.int64),
    )


def _new_outputs(sizes: Sizes, rng: np.random.Generator) -> Outputs:
    """Initially, all experts are equally likely, and votes have full weight."""
    shape = sizes.num_layers, sizes.num_distances * sizes.num_experts
    share = min(sizes.top_k / sizes.num_experts, 0.9)
    return Outputs(
        weights=_drawn(rng, 0.03, sizes.num_layers, sizes.num_units, shape[1]),
        bias=np.full(shape, np.log(share / (1 - share)), dtype=np.float32),
        vote_gains=np.full(shape, 2.0, dtype=np.float32),
        token_gains=np.full(shape, 4.0, dtype=np.float32),
        ahead_gains=np.full((sizes.num_layers, len(sizes.strides), sizes.num_experts), 1.0, dtype=np.float32),
        reliance=np.ones((2, sizes.num_distances), dtype=np.float32),
    )


def _new_memory(sizes: Sizes) -> Memory:
    rows, asked = (sizes.num_layers, sizes.memory_rows), sizes.asked_rows
    return Memory(
        ids=np.zeros((*rows, sizes.num_entries), dtype=np.uint16),
        values=_zeros(*rows, sizes.num_entries),
        demanded=np.zeros(rows, dtype=np.int64),
        before=np.full(sizes.memory_rows, NONE, dtype=np.int64),
        after=np.full(sizes.memory_rows, NONE, dtype=np.int64),
        slots=np.zeros(sizes.memory_rows, dtype=np.int64),
        numbers=np.zeros(sizes.memory_rows, dtype=np.int64),
        asked=np.zeros(asked, dtype=np.int64),
        previous=np.zeros(asked, dtype=np.int64),
        origins=np.zeros(asked, dtype=np.int64),
        affinities=np.full((2, asked, sizes.memory_rows), UNUSABLE, dtype=np.float32),
    )


def _new_tokens(sizes: Sizes) -> Tokens:
    shape = sizes.num_first, sizes.asked_rows, sizes.num_experts
    return Tokens(
        heard=np.zeros(sizes.num_tokens, dtype=np.int64),
        experts=np.full((sizes.num_tokens, OCCURRENCES, sizes.num_layers, sizes.top_k), NOBODY, dtype=np.uint16),
        known=np.full(sizes.memory_rows, NONE, dtype=np.int64),
        places=np.zeros(sizes.memory_rows, dtype=np.int64),
        asked=np.full(sizes.asked_rows, NONE, dtype=np.int64),
        votes=_zeros(*shape),
        probs=_zeros(*shape),
        gains=np.full((sizes.num_first, sizes.num_experts), 4.0, dtype=np.float32),
    )


def _new_answers(sizes: Sizes) -> Answers:
    rows, most_inputs = (sizes.num_layers, sizes.asked_rows), (sizes.num_layers + sizes.num_distances) * sizes.num_entries
    outputs = sizes.num_distances * sizes.num_experts
    return Answers(
        num_inputs=np.zeros(rows, dtype=np.int64),
        input_rows=np.zeros((*rows, most_inputs), dtype=np.int64),
        input_values=_zeros(*rows, most_inputs),
        votes=_zeros(*rows, outputs),
        token_votes=_zeros(*rows, outputs),
        ahead=_zeros(*rows, len(sizes.strides), sizes.num_experts),
        hidden=_zeros(*rows, sizes.num_units),
        probs=_zeros(*rows, outputs),
        is_pending=np.zeros(sizes.num_layers, dtype=np.bool_),
    )


def new_scratch(sizes: Sizes) -> Scratch:
    outputs = sizes.num_distances * sizes.num_experts
    return Scratch(
        left=_zeros(sizes.num_experts),
        own=_zeros(sizes.num_experts),
        totals=_zeros(sizes.num_distances),
        active=np.zeros(sizes.num_units, dtype=np.int64),
        active_values=_zeros(sizes.num_units),
        wrong=np.zeros(outputs, dtype=np.int64),
        steps=_zeros(outputs),
        errors=_zeros(outputs),
        blame=_zeros(sizes.num_units),
        nowhere=np.full(sizes.asked_rows, NONE, dtype=np.int64),
    )


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


def _drawn(rng: np.random.Generator, deviation: float, *shape: int) -> np.ndarray:
    drawn: np.ndarray = rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
    return drawn
