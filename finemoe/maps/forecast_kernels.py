"""The compiled steps of a forecaster: an iteration starts, a gate speaks, networks learn once all that they foretold has come."""

import functools

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.maps import forecast_addresses, forecast_network, forecast_rows, forecast_state
from finemoe.maps.forecast_addresses import state_at
from finemoe.maps.forecast_network import run_network, teach_network, to_probabilities
from finemoe.maps.forecast_rows import (
    continues,
    count_votes,
    forget_rows,
    place_asked,
    place_rows,
    remember_gate,
    resemble,
)
from finemoe.maps.forecast_state import (
    ALWAYS,
    CONTINUES,
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
from finemoe.native import float32_at
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = native.compiled, forecast_addresses, forecast_network, forecast_rows, forecast_state
forget_stale_kernels(__file__, *(one.__file__ for one in _SOURCES))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_FARTHEST = np.float32(4.0)  # in log odds from the K-th expert, what a router applied ahead can say


_entry = functools.partial(njit, cache=True, nogil=True)  # what Python calls, see `addresses_of`
_inlined = functools.partial(inner, inline="always")  # what would be compiled again with all that it calls


@_entry
def start_request(table):  # type: ignore[no-untyped-def]
    """Learn what is left to learn of the last request, and forget its rows, and what it taught where that is not to last."""
    state = state_at(table)
    _settle(state)
    forget_rows(state.counters, state.memory.before, state.memory.after)
    if state.counters[LEARNS] == WITHIN_REQUESTS:
        _copy_outputs(state.kept, state.outputs)


@_entry
def start_iteration(table, num_rows, is_prefill, forecast):  # type: ignore[no-untyped-def]
    """Foretell the first layers, before any gate has spoken, as those gates did that spoke of them last; forecast [F, J]."""
    state = state_at(table)
    _foretell_first(state, num_rows, forecast)
    if not continues(state.counters, num_rows, is_prefill):
        _settle(state)
    place_rows(state, num_rows, is_prefill)


@_entry
def hear_gate(table, layer, probs, experts, ahead, forecast):  # type: ignore[no-untyped-def]
    """Take in a gate: probs [B, J], experts [B, K], ahead [A, B, J] or [0, 0, 0]; foretell layers ahead, forecast [H, J].

    Returns:
        Whether it is one of the iteration that has started: of its next layer, with no fewer rows.
    """
    state = state_at(table)
    if not _is_in_place(state, layer, probs, experts):
        return False
    remember_gate(state, layer, probs, experts)
    _teach_one(state, layer - state.networks.distances[-1])
    for row in range(state.counters[NUM_ASKED]):
        resemble(state, layer, row)
        count_votes(state, layer, row, state.answers.votes[layer, row])
        _gather_inputs(state, layer, row)
        _run(state, layer, row, ahead)
    _answer(state, layer, forecast)
    return True


@_entry
def run_block(table, gates, experts, starts, is_prefill, starts_request, at_starts, at_gates):  # type: ignore[no-untyped-def]
    """Iterations one after the other, as `start_iteration` and `hear_gate` would do them.

    gates [L, T, J], experts [L, T, K], starts [n + 1], is_prefill and starts_request [n] -> at_starts [n, F, J], at_gates [n, L,
    H, J]; or [1, ...] where nobody wants them.
    """
    no_gates = float32_at(0, 0).reshape(0, 0, 0)
    for iteration in range(len(starts) - 1):
        begin, end = starts[iteration], starts[iteration + 1]
        place = min(iteration, len(at_starts) - 1)
        if starts_request[iteration]:
            start_request(table)
        start_iteration(table, end - begin, is_prefill[iteration], at_starts[place])
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
    _copy(source.ahead_gains.reshape(source.ahead_gains.size), target.ahead_gains.reshape(source.ahead_gains.size))


@inner
def _copy(source, target):  # type: ignore[no-untyped-def]
    for place in range(len(source)):
        target[place] = source[place]


@inner
def _foretell_first(state, num_rows, forecast):  # type: ignore[no-untyped-def]
    num_layers = len(state.networks.demands)
    if state.counters[LAST_LAYER] == num_layers - 1:
        for layer in range(len(forecast)):
            index = 0
            while state.networks.distances[index] < layer + 1:
                index += 1
            source = layer + num_layers - state.networks.distances[index]
            _unite(state, source, index, num_rows, state.counters[IS_PREFILL] != 0, forecast[layer])
    else:
        _tell_popularity(state, num_rows, forecast)
    state.counters[LAST_LAYER] = NONE


@inner
def _answer(state, layer, forecast):  # type: ignore[no-untyped-def]
    state.answers.is_pending[layer] = state.counters[LEARNS] != NEVER
    state.counters[LAST_LAYER] = layer
    for index in range(len(forecast)):
        _unite(state, layer, index, state.counters[NUM_ROWS], False, forecast[index])


@inner
def _gather_inputs(state, layer, row):  # type: ignore[no-untyped-def]
    """What a layer's network is given: this token's gates up to it, and the token before's at the layers foretold."""
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


@_inlined
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
    _read_ahead(state, layer, row, ahead, scores)
    to_probabilities(scores)


@inner
def _read_ahead(state, layer, row, ahead, scores):  # type: ignore[no-untyped-def]
    """Add what the routers applied ahead say: by how much each expert's log probability is above the K-th's."""
    num_layers, num_experts = state.networks.demands.shape
    told = state.answers.ahead[layer, row].reshape(len(state.networks.strides) * num_experts)
    for place in range(len(told)):
        told[place] = _ZERO
    for index in range(len(ahead)):
        stride, first = state.networks.strides[index], _first_output(state, index)
        if layer + stride < num_layers and first >= 0:
            margins = state.answers.ahead[layer, row, index]
            number = state.memory.numbers[place_asked(state.counters, row)]
            _margins(ahead[index, number], state.counters[TOP_K], margins, state.scratch.left)
            for expert in range(num_experts):
                scores[first + expert] += state.outputs.ahead_gains[layer, index, expert] * margins[expert]


@inner
def _first_output(state, index):  # type: ignore[no-untyped-def]
    """Where the outputs begin that are of the layer that a stride leads to, or NONE."""
    for place in range(len(state.networks.distances)):
        if state.networks.distances[place] == state.networks.strides[index]:
            return place * state.networks.demands.shape[1]
    return NONE


@inner
def _margins(probs, top_k, margins, left):  # type: ignore[no-untyped-def]
    kth = _ZERO
    for expert in range(len(probs)):
        left[expert] = probs[expert]
    for _ in range(min(top_k, len(probs))):
        best = 0
        for expert in range(len(left)):
            if left[expert] > left[best]:
                best = expert
        kth, left[best] = left[best], -_ONE
    for expert in range(len(probs)):
        ratio = max(float(probs[expert]), 1e-9) / max(float(kth), 1e-9)
        margins[expert] = max(min(np.float32(np.log(ratio)), _FARTHEST), -_FARTHEST)


@_inlined
def _teach_one(state, layer):  # type: ignore[no-untyped-def]
    """The network whose farthest layer foretold has just spoken learns, if it has not: that of `layer`, or, where this is below
    0, that of the last iteration."""
    if layer >= 0:
        if state.answers.is_pending[layer]:
            _teach(state, layer, state.memory.asked, state.memory.asked)
    elif state.counters[CONTINUES] and state.answers.is_pending[layer + len(state.networks.demands)]:
        _teach(state, layer + len(state.networks.demands), state.memory.previous, state.memory.asked)


@_inlined
def _settle(state):  # type: ignore[no-untyped-def]
    """Networks that wait for an iteration that does not come learn from what has."""
    for layer in range(len(state.networks.demands)):
        if state.answers.is_pending[layer]:
            _teach(state, layer, state.memory.asked, state.scratch.nowhere)


@inner
def _teach(state, layer, slots, followers):  # type: ignore[no-untyped-def]
    """slots, followers: [S] where the rows are remembered that the network was asked about, and their next tokens."""
    num_experts = state.networks.demands.shape[1]
    state.answers.is_pending[layer] = False
    is_whole = state.counters[LEARNS] == ALWAYS
    rate = state.networks.rates[0 if is_whole else 1]
    errors = state.scratch.errors
    for row in range(state.counters[NUM_ASKED]):
        for index in range(len(state.networks.distances)):
            part, target = slice(index * num_experts, (index + 1) * num_experts), layer + state.networks.distances[index]
            _errors(state, target, slots[row], followers[row], state.answers.probs[layer, row, part], errors[part])
        _learn_ahead(state, layer, row, errors, rate)
        teach_network(
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
            errors,
            rate,
            is_whole,
            state.scratch,
        )


@inner
def _errors(state, target, slot, follower, probs, errors):  # type: ignore[no-untyped-def]
    """By how much each probability was too great; 0 where the layer has not spoken."""
    num_layers = len(state.networks.demands)
    source = slot if target < num_layers else follower
    target -= num_layers if target >= num_layers else 0
    has_spoken = source >= 0 and state.memory.demanded[target, source] > 0
    for expert in range(len(errors)):
        errors[expert] = probs[expert] if has_spoken else _ZERO
    if has_spoken:
        for place in range(state.memory.demanded[target, source]):
            errors[state.memory.ids[target, source, place]] -= _ONE


@inner
def _learn_ahead(state, layer, row, errors, rate):  # type: ignore[no-untyped-def]
    num_experts = state.networks.demands.shape[1]
    for index in range(len(state.networks.strides)):
        first = _first_output(state, index)
        for expert in range(num_experts if first >= 0 else 0):
            step = rate * errors[first + expert] * state.answers.ahead[layer, row, index, expert]
            state.outputs.ahead_gains[layer, index, expert] -= step


@inner
def _unite(state, layer, index, num_rows, only_last, forecast):  # type: ignore[no-untyped-def]
    """The probability that any of the iteration's rows demands an expert: 1 - prod (1 - p) over the rows asked about, to the
    power of rows for each of them; of what follows a prefill, the last row's. Forecast [J], that of a layer's network at a
    distance."""
    num_asked = state.counters[NUM_ASKED]
    is_beyond = layer + state.networks.distances[index] >= len(state.networks.demands)
    is_last = only_last or (state.counters[IS_PREFILL] != 0 and is_beyond)
    first = num_asked - 1 if is_last else 0
    power = 1.0 if is_last and not only_last else max(num_rows / (num_asked - first), 1.0)
    for expert in range(len(forecast)):
        left = _ONE
        for row in range(first, num_asked):
            left *= _ONE - state.answers.probs[layer, row, index * len(forecast) + expert]
        forecast[expert] = _ONE - (left if power == 1.0 else np.float32(float(left) ** power))


@inner
def _tell_popularity(state, num_rows, forecast):  # type: ignore[no-untyped-def]
    """How often the first layers' experts are demanded; K of J before anything is known."""
    num_experts = state.networks.demands.shape[1]
    prior = min(state.counters[TOP_K], num_experts) / num_experts
    for layer in range(len(forecast)):
        for expert in range(num_experts):
            share = (state.networks.demands[layer, expert] + prior) / (state.networks.num_heard[layer] + 1)
            forecast[layer, expert] = np.float32(1.0 - max(1.0 - share, 0.0) ** num_rows)
