"""The compiled steps of a forecaster: start an iteration, process a gate, train networks once their forecast layers have run."""

import functools

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.maps import (
    forecast_addresses,
    forecast_ahead,
    forecast_learning,
    forecast_network,
    forecast_rows,
    forecast_state,
    forecast_tokens,
)
from finemoe.maps.forecast_addresses import state_at
from finemoe.maps.forecast_ahead import read_ahead
from finemoe.maps.forecast_learning import inlined, settle, teach_one
from finemoe.maps.forecast_network import run_network, to_probabilities
from finemoe.maps.forecast_rows import (
    continues,
    count_votes,
    forget_rows,
    place_rows,
    remember_gate,
    resemble,
)
from finemoe.maps.forecast_state import (
    IS_PREFILL,
    LAST_LAYER,
    LEARNS,
    NEVER,
    NONE,
    NUM_ASKED,
    NUM_ROWS,
    TOP_K,
    WITHIN_REQUESTS,
    inner,
)
from finemoe.maps.forecast_tokens import (
    count_token_votes,
    foretell_by_token,
    learn_first_gains,
    place_tokens,
    remember_tokens,
)
from finemoe.native import float32_at
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = native.compiled, forecast_addresses, forecast_ahead, forecast_learning, forecast_network
_SOURCES_OF_ROWS = forecast_rows, forecast_state, forecast_tokens
forget_stale_kernels(__file__, *(one.__file__ for one in (*_SOURCES, *_SOURCES_OF_ROWS)))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)

_entry = functools.partial(njit, cache=True, nogil=True)  # called from Python, see `addresses_of`


@_entry
def start_request(table):  # type: ignore[no-untyped-def]
    """Finish learning from the last request, then forget its rows, and what it taught if that is not to last."""
    state = state_at(table)
    settle(state)
    forget_rows(state.counters, state.memory.before, state.memory.after)
    if state.counters[LEARNS] == WITHIN_REQUESTS:
        _copy_outputs(state.kept, state.outputs)


@_entry
def start_iteration(table, num_rows, is_prefill, tokens, forecast):  # type: ignore[no-untyped-def]
    """Forecast the first layers before any gate has fired: from the gates that last forecast them, and from what the rows' tokens
    demanded elsewhere; tokens [B], or [0] if unknown; forecast [F, J]."""
    state = state_at(table)
    if not continues(state.counters, num_rows, is_prefill):
        settle(state)
    place_rows(state, num_rows, is_prefill)
    place_tokens(state, tokens)
    _foretell_first(state, forecast)


@_entry
def hear_gate(table, layer, probs, experts, ahead, forecast):  # type: ignore[no-untyped-def]
    """Process a gate: probs [B, J], experts [B, K], ahead [A, B, J] or [0, 0, 0]; forecast layers ahead, forecast [H, J].

    Returns:
        Whether the gate belongs to the current iteration: to its next layer, with at least as many rows.
    """
    state = state_at(table)
    if not _is_in_place(state, layer, probs, experts):
        return False
    remember_gate(state, layer, probs, experts)
    remember_tokens(state, layer)
    if layer < len(state.tokens.gains):
        learn_first_gains(state, layer, state.networks.rates[0])
    teach_one(state, layer - state.networks.distances[-1])
    for row in range(state.counters[NUM_ASKED]):
        resemble(state, layer, row)
        count_votes(state, layer, row, state.answers.votes[layer, row])
        count_token_votes(state, layer, row)
        _gather_inputs(state, layer, row)
        _run(state, layer, row, ahead)
    _answer(state, layer, forecast)
    return True


@_entry
def run_block(table, gates, experts, tokens, starts, is_prefill, starts_request, at_starts, at_gates):  # type: ignore[no-untyped-def]
    """Run consecutive iterations, with the results of `start_iteration` and `hear_gate`.

    gates [L, T, J], experts [L, T, K], tokens [T] or [0], starts [n + 1], is_prefill and starts_request [n] -> at_starts [n, F,
    J], at_gates [n, L, H, J]; or [1, ...] if the results are not needed.
    """
    no_gates = float32_at(0, 0).reshape(0, 0, 0)
    for iteration in range(len(starts) - 1):
        begin, end = starts[iteration], starts[iteration + 1]
        place = min(iteration, len(at_starts) - 1)
        if starts_request[iteration]:
            start_request(table)
        mine = tokens[begin:end] if len(tokens) else tokens
        start_iteration(table, end - begin, is_prefill[iteration], mine, at_starts[place])
        for layer in range(len(gates)):
            hear_gate(table, layer, gates[layer, begin:end], experts[layer, begin:end], no_gates, at_gates[place, layer])


@inner
def _is_in_place(state, layer, probs, experts):  # type: ignore[no-untyped-def]
    num_layers, num_experts = state.networks.demands.shape
    num_rows = state.counters[NUM_ROWS]
    has_rows = 0 < num_rows <= len(probs) and len(probs) == len(experts) and probs.shape[1] == num_experts
    return has_rows and layer == state.counters[LAST_LAYER] + 1 and layer < num_layers


@inner
def _copy_outputs(source, target):  # type: ignore[no-untyped-def]
    _copy(source.weights.reshape(source.weights.size), target.weights.reshape(source.weights.size))
    _copy(source.bias.reshape(source.bias.size), target.bias.reshape(source.bias.size))
    _copy(source.vote_gains.reshape(source.vote_gains.size), target.vote_gains.reshape(source.vote_gains.size))
    _copy(source.token_gains.reshape(source.token_gains.size), target.token_gains.reshape(source.token_gains.size))
    _copy(source.ahead_gains.reshape(source.ahead_gains.size), target.ahead_gains.reshape(source.ahead_gains.size))
    _copy(source.reliance.reshape(source.reliance.size), target.reliance.reshape(source.reliance.size))


@inner
def _copy(source, target):  # type: ignore[no-untyped-def]
    for place in range(len(source)):
        target[place] = source[place]


@inner
def _foretell_first(state, forecast):  # type: ignore[no-untyped-def]
    """Forecast of every row by the token before it, or the popular experts if there is none; all rows of the iteration united."""
    num_layers, num_asked = len(state.networks.demands), state.counters[NUM_ASKED]
    was_whole, power = state.counters[LAST_LAYER] == num_layers - 1, state.counters[NUM_ROWS] / max(num_asked, 1)
    probs, left = state.scratch.own, state.scratch.left
    for layer in range(len(forecast)):
        for expert in range(len(left)):
            left[expert] = _ONE
        for row in range(num_asked):
            origin = state.memory.origins[row] if was_whole else NONE
            _recall(state, layer, origin, probs)
            foretell_by_token(state, layer, row, probs)
            for expert in range(len(left)):
                left[expert] *= _ONE - probs[expert]
        for expert in range(len(left)):
            forecast[layer, expert] = _ONE - (left[expert] if power == 1.0 else np.float32(float(left[expert]) ** power))
    state.counters[LAST_LAYER] = NONE


@inner
def _recall(state, layer, origin, probs):  # type: ignore[no-untyped-def]
    """What a row of the last iteration forecast for a layer of its next token, or how often that layer's experts are demanded: K
    of J before anything is known; probs [J]."""
    num_layers, num_experts = state.networks.demands.shape
    if origin >= 0:
        index = 0
        while state.networks.distances[index] < layer + 1:
            index += 1
        source = layer + num_layers - state.networks.distances[index]
        for expert in range(num_experts):
            probs[expert] = state.answers.probs[source, origin, index * num_experts + expert]
    else:
        prior = min(state.counters[TOP_K], num_experts) / num_experts
        for expert in range(num_experts):
            share = (state.networks.demands[layer, expert] + prior) / (state.networks.num_heard[layer] + 1)
            probs[expert] = np.float32(min(share, 1.0))


@inner
def _answer(state, layer, forecast):  # type: ignore[no-untyped-def]
    state.answers.is_pending[layer] = state.counters[LEARNS] != NEVER
    state.counters[LAST_LAYER] = layer
    for index in range(len(forecast)):
        _unite(state, layer, index, forecast[index])


@inner
def _gather_inputs(state, layer, row):  # type: ignore[no-untyped-def]
    """Collect the inputs of a layer's network: this token's gates up to it, and the previous token's at the forecast layers."""
    num_layers, num_experts = state.networks.demands.shape
    count, slot = 0, state.memory.asked[row]
    for source in range(layer + 1):
        count = _add_inputs(state, layer, row, count, state.networks.first_input[layer] + source * num_experts, source, slot)
    slot = state.memory.previous[row]
    for index in range(len(state.networks.distances) if slot >= 0 else 0):
        place = state.networks.first_input[layer] + (layer + 1 + index) * num_experts
        count = _add_inputs(state, layer, row, count, place, (layer + state.networks.distances[index]) % num_layers, slot)
    state.answers.num_inputs[layer, row] = count


@inner
def _add_inputs(state, layer, row, count, place, source, slot):  # type: ignore[no-untyped-def]
    ids, values = state.memory.ids[source, slot], state.memory.values[source, slot]
    for entry in range(len(ids)):
        if values[entry] != _ZERO:
            state.answers.input_rows[layer, row, count] = place + ids[entry]
            state.answers.input_values[layer, row, count] = values[entry]
            count += 1
    return count


@inlined
def _run(state, layer, row, ahead):  # type: ignore[no-untyped-def]
    scores = state.answers.probs[layer, row]
    run_network(
        state.networks.inputs,
        state.answers.input_rows[layer, row],
        state.answers.input_values[layer, row],
        state.answers.num_inputs[layer, row],
        state.networks.hidden_bias[layer],
        state.outputs.weights[layer],
        state.outputs.bias[layer],
        state.outputs.vote_gains[layer],
        state.answers.votes[layer, row],
        state.answers.hidden[layer, row],
        scores,
        state.scratch,
    )
    read_ahead(state, layer, row, ahead, scores)
    gains, votes = state.outputs.token_gains[layer], state.answers.token_votes[layer, row]
    for place in range(len(scores)):
        scores[place] += gains[place] * votes[place]
    to_probabilities(scores)


@inner
def _unite(state, layer, index, forecast):  # type: ignore[no-untyped-def]
    """The probability that any of the iteration's rows demands an expert: 1 - prod (1 - p) over the sampled rows, to the power of
    the rows that each represents; for what follows a prefill, the last row's. Forecast [J], that of a layer's network at a
    distance."""
    num_asked = state.counters[NUM_ASKED]
    is_beyond = layer + state.networks.distances[index] >= len(state.networks.demands)
    is_last = state.counters[IS_PREFILL] != 0 and is_beyond
    first = num_asked - 1 if is_last else 0
    power = 1.0 if is_last else max(state.counters[NUM_ROWS] / num_asked, 1.0)
    for expert in range(len(forecast)):
        left = _ONE
        for row in range(first, num_asked):
            left *= _ONE - state.answers.probs[layer, row, index * len(forecast) + expert]
        forecast[expert] = _ONE - (left if power == 1.0 else np.float32(float(left) ** power))
