"""A forecaster by address, for compiled code that takes one table instead of its 59 arrays."""

import functools

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.maps import forecast_state
from finemoe.maps.forecast_state import (
    NUM_COUNTERS,
    OCCURRENCES,
    Answers,
    ForecastState,
    Memory,
    Networks,
    Outputs,
    Scratch,
    Tokens,
)
from finemoe.native import bool_at, float32_at, int64_at, uint16_at
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, native.compiled.__file__, forecast_state.__file__)
# L, J, H, N, A, M, S, E; inputs of all networks, and the most of any one; number of layers whose outputs are kept; F, V, K; then
# the addresses.
_SIZES = 14
_made = functools.partial(njit, cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # makes arrays from addresses


def addresses_of(state: ForecastState) -> np.ndarray:
    """The addresses that `state_at` needs to find the forecaster, [n] int64; valid as long as the state's arrays exist."""
    networks, memory, answers = state.networks, state.memory, state.answers
    sizes = (
        *networks.demands.shape,
        len(networks.distances),
        networks.inputs.shape[1],
        len(networks.strides),
        len(memory.slots),
        len(memory.asked),
        memory.ids.shape[2],
        len(networks.inputs),
        answers.input_rows.shape[2],
        len(state.kept.weights),
        len(state.tokens.gains),
        len(state.tokens.heard),
        state.tokens.experts.shape[3],
    )
    arrays = [state.counters, *(array for group in state[1:] for array in group)]
    assert all(array.flags.c_contiguous for array in arrays)
    return np.array([*sizes, *(array.ctypes.data for array in arrays)], dtype=np.int64)


@_made
def state_at(table):  # type: ignore[no-untyped-def]
    """The forecaster for a table made by `addresses_of`."""
    at = table[_SIZES:]
    return ForecastState(
        int64_at(at[0], NUM_COUNTERS),
        _networks_at(table, at[1:]),
        _outputs_at(table, at[9:], table[0]),
        _outputs_at(table, at[15:], table[10]),
        _memory_at(table, at[21:]),
        _tokens_at(table, at[32:]),
        _answers_at(table, at[40:]),
        _scratch_at(table, at[49:]),
    )


@_made
def _networks_at(table, at):  # type: ignore[no-untyped-def]
    num_layers, num_experts, num_distances, num_units, num_strides = table[0], table[1], table[2], table[3], table[4]
    return Networks(
        float32_at(at[0], 2),
        int64_at(at[1], num_layers),
        float32_at(at[2], table[8] * num_units).reshape(table[8], num_units),
        float32_at(at[3], num_layers * num_units).reshape(num_layers, num_units),
        int64_at(at[4], num_distances),
        int64_at(at[5], num_strides),
        int64_at(at[6], num_layers * num_experts).reshape(num_layers, num_experts),
        int64_at(at[7], num_layers),
    )


@_made
def _outputs_at(table, at, num_layers):  # type: ignore[no-untyped-def]
    num_experts, num_units, num_strides = table[1], table[3], table[4]
    num_outputs = table[2] * num_experts
    return Outputs(
        float32_at(at[0], num_layers * num_units * num_outputs).reshape(num_layers, num_units, num_outputs),
        float32_at(at[1], num_layers * num_outputs).reshape(num_layers, num_outputs),
        float32_at(at[2], num_layers * num_outputs).reshape(num_layers, num_outputs),
        float32_at(at[3], num_layers * num_outputs).reshape(num_layers, num_outputs),
        float32_at(at[4], num_layers * num_strides * num_experts).reshape(num_layers, num_strides, num_experts),
        float32_at(at[5], 2 * table[2]).reshape(2, table[2]),
    )


@_made
def _memory_at(table, at):  # type: ignore[no-untyped-def]
    num_layers, num_slots, num_asked, num_entries = table[0], table[5], table[6], table[7]
    return Memory(
        uint16_at(at[0], num_layers * num_slots * num_entries).reshape(num_layers, num_slots, num_entries),
        float32_at(at[1], num_layers * num_slots * num_entries).reshape(num_layers, num_slots, num_entries),
        int64_at(at[2], num_layers * num_slots).reshape(num_layers, num_slots),
        int64_at(at[3], num_slots),
        int64_at(at[4], num_slots),
        int64_at(at[5], num_slots),
        int64_at(at[6], num_slots),
        int64_at(at[7], num_asked),
        int64_at(at[8], num_asked),
        int64_at(at[9], num_asked),
        float32_at(at[10], 2 * num_asked * num_slots).reshape(2, num_asked, num_slots),
    )


@_made
def _tokens_at(table, at):  # type: ignore[no-untyped-def]
    num_experts, num_slots, num_asked = table[1], table[5], table[6]
    num_first, num_tokens, num_values = table[11], table[12], table[11] * table[6] * table[1]
    size = num_tokens * OCCURRENCES * table[0] * table[13]
    return Tokens(
        int64_at(at[0], num_tokens),
        uint16_at(at[1], size).reshape(num_tokens, OCCURRENCES, table[0], table[13]),
        int64_at(at[2], num_slots),
        int64_at(at[3], num_slots),
        int64_at(at[4], num_asked),
        float32_at(at[5], num_values).reshape(num_first, num_asked, num_experts),
        float32_at(at[6], num_values).reshape(num_first, num_asked, num_experts),
        float32_at(at[7], num_first * num_experts).reshape(num_first, num_experts),
    )


@_made
def _answers_at(table, at):  # type: ignore[no-untyped-def]
    num_layers, num_experts, num_units, num_strides, num_asked, most = table[0], table[1], table[3], table[4], table[6], table[9]
    num_rows, num_outputs = num_layers * num_asked, table[2] * num_experts
    return Answers(
        int64_at(at[0], num_rows).reshape(num_layers, num_asked),
        int64_at(at[1], num_rows * most).reshape(num_layers, num_asked, most),
        float32_at(at[2], num_rows * most).reshape(num_layers, num_asked, most),
        float32_at(at[3], num_rows * num_outputs).reshape(num_layers, num_asked, num_outputs),
        float32_at(at[4], num_rows * num_outputs).reshape(num_layers, num_asked, num_outputs),
        float32_at(at[5], num_rows * num_strides * num_experts).reshape(num_layers, num_asked, num_strides, num_experts),
        float32_at(at[6], num_rows * num_units).reshape(num_layers, num_asked, num_units),
        float32_at(at[7], num_rows * num_outputs).reshape(num_layers, num_asked, num_outputs),
        bool_at(at[8], num_layers),
    )


@_made
def _scratch_at(table, at):  # type: ignore[no-untyped-def]
    num_experts, num_distances, num_units = table[1], table[2], table[3]
    num_outputs = num_distances * num_experts
    return Scratch(
        float32_at(at[0], num_experts),
        float32_at(at[1], num_experts),
        float32_at(at[2], num_distances),
        int64_at(at[3], num_units),
        float32_at(at[4], num_units),
        int64_at(at[5], num_outputs),
        float32_at(at[6], num_outputs),
        float32_at(at[7], num_outputs),
        float32_at(at[8], num_units),
        int64_at(at[9], table[6]),
    )
