"""Forecasts of the experts that the next layers will demand, with probabilities: learned online, from one gate to the next.

For every layer, a small network takes this token's gates so far and what the previous token did at the layers ahead. To its log
odds, a vote is added: what did the tokens of the request that resemble this one, by its gates so far and the latest most, demand
there? Each network takes one gradient step on its cross-entropy as soon as the last layer that it forecast has run.

If the tokens of an iteration are known by their embeddings, a third source contributes even before any gate: what did these
tokens demand wherever they occurred?
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.files import load_arrays, save_arrays
from finemoe.maps.forecast_addresses import addresses_of
from finemoe.maps.forecast_kernels import hear_gate, run_block, start_iteration, start_request
from finemoe.maps.forecast_state import (
    ALWAYS,
    LEARNS,
    MOST_EXPERTS,
    NEVER,
    OCCURRENCES,
    WITHIN_REQUESTS,
    ForecastState,
    Outputs,
    Sizes,
    new_state,
)
from finemoe.maps.forecast_step import ForecastStep
from finemoe.maps.token_directory import TokenDirectory, identities
from finemoe.traces import PREFILL, RoutingTrace

MOST_ROWS = 8  # sampled rows of an iteration, which are forecast for and learned from
_MEMORY_ROWS = 512
_NUM_FIRST = 16
_KIND, _VERSION = "forecaster", 2
_MOST_UNITS, _FEWEST_UNITS = 128, 16
_PRODUCTS = 100_000  # limit for a network: some 50 us of computing and learning
_BYTES = 150e6  # limit for all networks
_MOST_TOKENS, _TOKEN_BYTES = 4096, 32e6
_NO_TOKENS = np.zeros(0, dtype=np.int64)


class Forecaster:
    """Probabilities that experts are demanded by the layers ahead and, past the last layer, by those of the next token.

    An iteration is `start`, then `hear` for every layer in order; the caller owns the arrays that they return. `forecast_block`
    runs many iterations at once with the same results, bit for bit.

    Args:
        num_layers, num_experts, top_k: L, J, K.
        distances: [H] in layers, ascending, at most L; None: 1, 2, 4, 8, ..., L. num_first: F, number of first layers to forecast
            when an iteration starts; at most the last distance.
        strides: in layers, of the routers applied ahead that `hear` may receive.
        num_units: N of each layer's network; None: as many as a gate can train in about 50 microseconds.
        memory_rows: M, number of remembered rows of the request. num_tokens: V, number of remembered tokens over all requests;
            None: as many as fit in 32 MB, at most 4,096.
        seed: of the networks' initial weights, and of the order in which a history is learned. model: identity of the model.
    Attributes:
        table: [n] int64, by which compiled code finds the state, see `forecast_addresses`; valid as long as this object exists
            and until it is frozen again.
    Raises:
        FinemoeError: impossible sizes, or distances beyond L.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        top_k: int,
        distances: Sequence[int] | None = None,
        num_first: int | None = None,
        strides: tuple[int, ...] = (),
        num_units: int | None = None,
        memory_rows: int = _MEMORY_ROWS,
        num_tokens: int | None = None,
        seed: int = 0,
        model: str = "",
    ) -> None:
        if min(num_layers, num_experts, top_k) < 1 or num_experts > MOST_EXPERTS:
            raise FinemoeError(f"impossible model: {num_layers} layers of {num_experts} experts, {top_k} per token")
        self.distances = doubling(num_layers) if distances is None else tuple(distances)
        if not self.distances or not _are_distances(self.distances, num_layers):
            raise FinemoeError(f"distances are {self.distances}; they must rise, from 1 at least to {num_layers} layers at most")
        if memory_rows < 2 * MOST_ROWS:
            raise FinemoeError(f"memory_rows is {memory_rows}; a forecaster needs at least {2 * MOST_ROWS} rows")
        self.num_layers, self.num_experts, self._seed = num_layers, num_experts, seed
        self._num_first = min(_NUM_FIRST if num_first is None else num_first, self.distances[-1])
        self.top_k = top_k = min(top_k, num_experts)
        units = default_units(num_layers, num_experts, top_k, len(self.distances)) if num_units is None else num_units
        tokens = _default_tokens(num_layers, top_k) if num_tokens is None else num_tokens
        rows = memory_rows, MOST_ROWS, self._num_first
        self._sizes = sizes = Sizes(num_layers, num_experts, top_k, self.distances, units, strides, *rows, tokens)
        self.model = model
        self._hold(new_state(sizes, seed))
        self._directory = TokenDirectory(tokens)
        self._rate = np.float32(min(0.03, 0.12 / (num_layers / 2 + len(self.distances))))  # smaller steps for more inputs
        self._state.networks.rates[:] = self._rate, 2 * self._rate
        self._no_gates = np.zeros((0, 0, 0), dtype=np.float32)
        start_request(self.table)

    @property
    def is_frozen(self) -> bool:
        """Whether forecasts for other requests no longer change."""
        return bool(self._state.counters[LEARNS] != ALWAYS)

    @is_frozen.setter
    def is_frozen(self, is_frozen: bool) -> None:
        if is_frozen:
            self.freeze()
        else:
            start_request(self.table)
            self._state.counters[LEARNS] = ALWAYS

    def freeze(self, adapts: bool = True) -> None:
        """From now on, let every request start with what was learned so far, including the running request.

        Args:
            adapts: whether the networks' last layer still learns within a request, and forgets it at the end.
        """
        start_request(self.table)
        kept = Outputs(*(array.copy() if adapts else array[:0].copy() for array in self._state.outputs))
        state = self._state
        self._hold(ForecastState(state.counters, state.networks, state.outputs, kept, state.memory, state.tokens, *state[6:]))
        self._state.counters[LEARNS] = WITHIN_REQUESTS if adapts else NEVER

    def _hold(self, state: ForecastState) -> None:
        self._state = state
        self.table = addresses_of(state)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its arrays."""
        groups = self._state[1:]
        return self._state.counters.nbytes + sum(array.nbytes for group in groups for array in group)

    @property
    def network_bytes(self) -> int:
        """Bytes of weights that the last layer's network, which has the most inputs, reads for one row."""
        num_units = self._state.networks.hidden_bias.shape[1]
        return 4 * num_units * _num_products(self.num_layers, self.num_experts, self.top_k, len(self.distances))

    def step(self, least: float, farthest: int) -> ForecastStep:
        """The compiled equivalent of `hear` for the gates of this iteration, with the selection of experts to prefetch."""
        return ForecastStep(self.table, self._state, self.distances, self.num_layers, least, farthest)

    def start_request(self) -> None:
        """Start another request: forget the remembered rows."""
        start_request(self.table)

    def start(self, num_rows: int = 1, is_prefill: bool = False, embeddings: np.ndarray | None = None) -> np.ndarray:
        """Start an iteration of B rows; returns [F, J] float32 probabilities for its first layers.

        Args:
            is_prefill: whether the rows are consecutive tokens of one sequence, which the next iteration continues; otherwise row
                b of the next iteration follows row b of this one if there are as many.
            embeddings: [B, h] of the tokens, by which they are recognised; None if there are none.
        """
        forecast = np.empty((self._num_first, self.num_experts), dtype=np.float32)
        start_iteration(self.table, num_rows, is_prefill, self._tokens(embeddings), forecast)
        return forecast

    def hear(self, layer: int, probs: np.ndarray, experts: np.ndarray, ahead: np.ndarray | None = None) -> np.ndarray:
        """Process the gate of `layer`; returns [H, J] float32 probabilities that any row demands each expert of the layers ahead.

        Args:
            probs: [B, J] float32. experts: [B, K] int64 demanded by each row, of width 0 if the layer did not run; ids of J or
                more are not experts.
            ahead: [A, B, J] float32 routers applied ahead, for the constructor's `strides`.
        Raises:
            FinemoeError: it is not this layer's turn, or the shape is wrong.
        """
        forecast = np.empty((len(self.distances), self.num_experts), dtype=np.float32)
        probs = np.ascontiguousarray(probs, dtype=np.float32)  # so that a single kernel is compiled
        experts = np.ascontiguousarray(experts, dtype=np.int64)
        ahead = self._no_gates if ahead is None else np.ascontiguousarray(ahead, dtype=np.float32)
        if not hear_gate(self.table, layer, probs, experts, ahead, forecast):
            raise FinemoeError(f"the gate of layer {layer}, {probs.shape}, does not belong to the iteration that has started")
        return forecast

    def forecast_block(
        self,
        gates: np.ndarray,
        experts: np.ndarray,
        starts: np.ndarray,
        is_prefill: np.ndarray,
        starts_request: np.ndarray,
        embeddings: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The results of `start` and `hear` for consecutive iterations, [n, F, J] and [n, L, H, J], in one call.

        Args:
            gates: [L, T, J] float32. experts: [T, L, K] int64. starts: [n + 1] first row of each iteration, and the end.
            is_prefill, starts_request: [n] bool. embeddings: [T, h] or None, as in `start`.
        """
        forecasts = self._forecasts(len(starts) - 1)
        self._run_block(gates, experts, self._tokens(embeddings), starts, is_prefill, starts_request, forecasts)
        return forecasts

    def learn_trace(self, trace: RoutingTrace, passes: int = 2) -> None:
        """Learn from a history: requests in a new random order in every pass, with ever smaller steps."""
        rng = np.random.default_rng(self._seed)
        order = np.concatenate([rng.permutation(trace.num_requests) for _ in range(passes)]) if passes else np.zeros(0, dtype=int)
        forecasts = self._forecasts(1)
        for place, request in enumerate(order):
            self._state.networks.rates[0] = self._rate * np.float32(1 - 0.9 * place / len(order))
            self._learn_request(trace, int(request), forecasts)
        self._state.networks.rates[0] = self._rate
        self.start_request()

    def _learn_request(self, trace: RoutingTrace, request: int, forecasts: tuple[np.ndarray, np.ndarray]) -> None:
        rows = trace.rows_of(request)
        steps = trace.step[rows]
        starts = np.append(np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1)), len(steps))
        is_first, is_prefill = np.arange(len(starts) - 1) == 0, trace.phase[rows][starts[:-1]] == PREFILL
        gates, experts = trace.maps(rows).transpose(1, 0, 2), trace.expert_ids[rows].astype(np.int64)
        tokens = self._tokens(None if trace.embedding_table is None else trace.embeddings(rows))
        self._run_block(gates, experts, tokens, starts, is_prefill, is_first, forecasts)

    def _run_block(
        self,
        gates: np.ndarray,
        experts: np.ndarray,
        tokens: np.ndarray,
        starts: np.ndarray,
        is_prefill: np.ndarray,
        starts_request: np.ndarray,
        forecasts: tuple[np.ndarray, np.ndarray],
    ) -> None:
        by_layer = np.ascontiguousarray(experts.transpose(1, 0, 2))
        run_block(self.table, np.ascontiguousarray(gates), by_layer, tokens, starts, is_prefill, starts_request, *forecasts)

    def _tokens(self, embeddings: np.ndarray | None) -> np.ndarray:
        """[B] places of tokens, or [0]; new tokens get a place as long as lasting learning is on."""
        if embeddings is None:
            return _NO_TOKENS
        return self._directory.places(identities(embeddings), not self.is_frozen)

    def save(self, path: str | Path) -> None:
        """Write what was learned to one file, atomically; this ends the running request."""
        names = ("num_layers", "num_experts", "top_k", "distances", "num_units", "strides", "memory_rows", "num_tokens")
        meta = {name: getattr(self._sizes, name) for name in names} | {"model": self.model}
        save_arrays(path, _KIND, _VERSION, self.state(), meta)

    @classmethod
    def load(cls, path: str | Path) -> "Forecaster":
        """Load a forecaster that `save` wrote.

        Raises:
            FinemoeError: the file is missing, truncated, damaged, or of another format.
        """
        arrays, meta = load_arrays(path, _KIND, _VERSION)
        forecaster = cls(**meta | {"strides": tuple(meta["strides"])})
        forecaster.restore(arrays)
        return forecaster

    def state(self) -> dict[str, np.ndarray]:
        """What was learned, by name, without the memory of the running request, which this ends."""
        start_request(self.table)
        return {name: array.copy() for name, array in self._learned().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what another forecaster of the same sizes learned, and forget the running request.

        Raises:
            FinemoeError: the other has different sizes, or is incomplete.
        """
        start_request(self.table)
        for name, array in self._learned().items():
            given = np.asarray(state.get(name))
            if given.shape != array.shape:
                raise FinemoeError(f"the forecaster's {name} is of shape {array.shape}; there is one of shape {given.shape}")
            array[:] = given
        self._directory.restored()
        if len(self._state.kept.weights):
            self.freeze()

    def _learned(self) -> dict[str, np.ndarray]:
        """The arrays that hold everything learned."""
        networks, outputs, tokens = self._state.networks, self._state.outputs, self._state.tokens
        arrays = {name: getattr(networks, name) for name in ("inputs", "hidden_bias", "demands", "num_heard")}
        arrays |= {
            name: getattr(outputs, name) for name in ("weights", "bias", "vote_gains", "token_gains", "ahead_gains", "reliance")
        }
        arrays |= {"tokens_heard": tokens.heard, "token_experts": tokens.experts, "first_gains": tokens.gains}
        return arrays | {"token_keys": self._directory.keys, "tokens_known": self._directory.count}

    def _forecasts(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrays for the forecasts of the given number of iterations."""
        shape = count, self.num_layers, len(self.distances), self.num_experts
        return np.empty((count, self._num_first, self.num_experts), dtype=np.float32), np.empty(shape, dtype=np.float32)


def doubling(num_layers: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... layers, and L: near layers are forecast at every gate, far ones occasionally."""
    powers = [2**exponent for exponent in range(num_layers.bit_length())]
    return tuple(sorted({*powers, num_layers} & {*range(1, num_layers + 1)}))


def _are_distances(distances: tuple[int, ...], num_layers: int) -> bool:
    return list(distances) == sorted(set(distances)) and distances[0] >= 1 and distances[-1] <= num_layers


def _num_products(num_layers: int, num_experts: int, top_k: int, num_distances: int) -> int:
    """Maximum number of products of one unit of a network: its inputs from gates, and all outputs."""
    return 2 * top_k * (num_layers + num_distances) + num_distances * num_experts


def default_units(num_layers: int, num_experts: int, top_k: int, num_distances: int) -> int:
    """N: as many as are worth their time, within the limits for a gate's time and for memory."""
    products = _num_products(num_layers, num_experts, top_k, num_distances)
    weights = num_layers * num_experts * (num_layers / 2 + 3 * num_distances)
    fitting = int(min(_PRODUCTS / products, _BYTES / (4 * weights), _MOST_UNITS))
    return max(fitting // 8 * 8, _FEWEST_UNITS)


def _default_tokens(num_layers: int, top_k: int) -> int:
    """V: as many as fit in memory."""
    return max(min(_MOST_TOKENS, int(_TOKEN_BYTES / (2 * OCCURRENCES * num_layers * top_k))), 1)
