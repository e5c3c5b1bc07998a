"""One compiled call that answers a gate with a forecaster, for executors that avoid calling Python in every layer."""

import functools
from collections.abc import Sequence

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.maps import (
    following,
    forecast_addresses,
    forecast_ahead,
    forecast_kernels,
    forecast_learning,
    forecast_network,
    forecast_rows,
    forecast_state,
    forecast_tokens,
)
from finemoe.maps.following import OUT_OF_PLACE
from finemoe.maps.forecast_kernels import hear_gate
from finemoe.native import float32_at, float64_at, function_addresses, function_types, int64_at
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = native.compiled, following, forecast_addresses, forecast_ahead, forecast_kernels, forecast_learning
_SOURCES_OF_ROWS = forecast_network, forecast_rows, forecast_state, forecast_tokens
forget_stale_kernels(__file__, *(one.__file__ for one in (*_SOURCES, *_SOURCES_OF_ROWS)))
# Layout of the table. Addresses of: `hear_gate`, the forecaster's own table, distances, the least probability.
_HEAR, _FORECASTER, _DISTANCES, _LEAST = range(4)
_LENGTH, _NUM_DISTANCES, _NUM_LAYERS, _FARTHEST = range(4, 8)  # of the forecaster's table; H; L; see ForecastStep

_NUMBERS, _GATE = np.zeros(1, dtype=np.int64), np.zeros((1, 1), dtype=np.float32)
_HEARD = _NUMBERS, 1, _GATE, _NUMBERS[None], _GATE[None], _GATE
_hear_at, _ = function_types(True, *_HEARD)


class ForecastStep:
    """The compiled answer of a forecaster to gates.

    Args:
        forecaster: its table, see `forecast_addresses`. owner: keeps the table alive.
        distances: [H] of the forecaster. num_layers: L.
        least: minimum probability of an expert to prefetch. farthest: maximum number of layers ahead to prefetch.
    Attributes:
        table: [n] int64, the argument of `foretell_gate`; valid as long as this object exists. least: [1] float64, in the
            precision in which NumPy compares it with single precision.
    """

    def __init__(
        self, forecaster: np.ndarray, owner: object, distances: Sequence[int], num_layers: int, least: float, farthest: int
    ) -> None:
        chosen = np.array(distances, dtype=np.int64)
        self.least = np.array([np.result_type(np.float32, least).type(least)], dtype=np.float64)
        self._kept = forecaster, owner, chosen
        addresses = hear_address(), forecaster.ctypes.data, chosen.ctypes.data, self.least.ctypes.data
        self.table = np.array([*addresses, len(forecaster), len(chosen), num_layers, farthest], dtype=np.int64)


@njit(cache=True, nogil=True)
def foretell_gate(table, layer, probs, selected, layers, probabilities, counts, experts):  # type: ignore[no-untyped-def]
    """The function of `GateStep`: for every forecast layer its probabilities, and the experts to prefetch if the layer is near
    enough, in this iteration."""
    forecaster, no_gates = int64_at(table[_FORECASTER], table[_LENGTH]), float32_at(0, 0).reshape(0, 0, 0)
    if not _hear_at(table[_HEAR])(forecaster, layer, probs, selected, no_gates, probabilities):
        return np.int64(OUT_OF_PLACE)
    distances, least = int64_at(table[_DISTANCES], table[_NUM_DISTANCES]), float64_at(table[_LEAST], 1)[0]
    for index in range(len(distances)):
        target, count = layer + distances[index], 0
        if target < table[_NUM_LAYERS] and distances[index] <= table[_FARTHEST]:
            for expert in range(probabilities.shape[1]):
                if np.float64(probabilities[index, expert]) >= least:
                    experts[index, count] = expert
                    count += 1
        layers[index], counts[index] = target % table[_NUM_LAYERS], count
    return np.int64(len(distances))


@functools.cache
def hear_address() -> int:
    """Address of the compiled `hear_gate`."""
    return function_addresses(hear_gate, *_HEARD)[0]


@functools.cache
def foretell_gate_address() -> int:
    """Address of the compiled `foretell_gate`, for code that calls functions by address."""
    examples = _NUMBERS, 1, _GATE, _NUMBERS[None], _NUMBERS, _GATE, _NUMBERS, _NUMBERS[None]
    return function_addresses(foretell_gate, *examples)[0]
