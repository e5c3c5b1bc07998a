"""The compiled steps of a forecaster: an iteration starts, a gate speaks, networks learn once all that they foretold has come."""

import numpy as np

from finemoe.compiling import njit
from finemoe.maps import forecast_network, forecast_rows, forecast_state
from finemoe.maps.forecast_network import run_network, teach_network, to_probabilities
from finemoe.maps.forecast_rows import (
    continues,
    count_votes,
    extend_affinities,
    forget_rows,
    place_asked,
    place_rows,
    remember_gate,
)
from finemoe.maps.forecast_state import (
    ALWAYS,
    CONTINUES,
    FILLED,
    IS_PREFILL,
    LAST_LAYER,
    LEARNS,
    NEVER,
    NONE,
    NUM_ASKED,
    NUM_ROWS,
    TABLE,
    TOP_K,
    WITHIN_REQUESTS,
)
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, forecast_network.__file__, forecast_rows.__file__, forecast_state.__file__)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_FARTHEST = np.float32(4.0)  # in log odds from the K-th expert, what a router applied ahead can say


@njit(cache=True, nogil=True)
def start_request(state):  # type: ignore[no-untyped-def]
    """Learn what is left to learn of the last request, and forget its rows, and what it taught where that is not to last."""
    settle(state)
    forget_rows(state.counters, state.memory.before, state.memory.after)
    if state.counters[LEARNS] == WITHIN_REQUESTS:
        _copy_outputs(state.kept, state.outputs)


@njit(cache=True, nogil=True)
def _copy_outputs(source, target):  # type: ignore[no-untyped-def]
    target.weights[:] = source.weights
    target.across[:] = source.across
    target.bias[:] = source.bias
    target.vote_gains[:] = source.vote_gains
    target.ahead_gains[:] = source.ahead_gains


@njit(cache=True, nogil=True)
def start_iteration(state, num_rows, is_prefill, forecast):  # type: ignore[no-untyped-def]
    """Foretell the first layers, before any gate has spoken, as those gates did that spoke of them last; forecast [F, J]."""
    num_layers = len(state.networks.demands)
    if state.counters[LAST_LAYER] == num_layers - 1:
        for layer in range(len(forecast)):
            index = np.searchsorted(state.networks.distances, layer + 1)
            source = layer + num_layers - state.networks.distances[index]
            _unite(state, source, index, num_rows, state.counters[IS_PREFILL] != 0, forecast[layer])
    else:
        _tell_popularity(state, num_rows, forecast)
    if not continues(state.counters, num_rows, is_prefill):
        settle(state)
    place_rows(state, num_rows, is_prefill)
    state.counters[LAST_LAYER] = NONE


@njit(cache=True, nogil=True)
def hear_gate(state, layer, probs, experts, ahead, forecast):  # type: ignore[no-untyped-def]
    """Take in a gate: probs [B, J], experts [B, K], ahead [A, B, J] or [0, 0, 0]; foretell layers ahead, forecast [H, J]."""
    counters, num_experts = state.counters, state.networks.demands.shape[1]
    remember_gate(state, layer, probs, experts)
    _teach_one(state, layer - state.networks.distances[-1])
    for row in range(counters[NUM_ASKED]):
        affinities = state.memory.affinities[counters[TABLE], row, : counters[FILLED]]
        extend_affinities(state.memory.ids[layer], state.memory.values[layer], state.memory.asked[row], affinities, num_experts)
        count_votes(state, layer, row, state.answers.votes[layer, row])
        _gather_inputs(state, layer, row)
        _run(state, layer, row, ahead)
    state.answers.is_pending[layer] = counters[LEARNS] != NEVER
    counters[LAST_LAYER] = layer
    for index in range(len(forecast)):
        _unite(state, layer, index, counters[NUM_ROWS], False, forecast[index])


@njit(cache=True, nogil=True)
def run_block(state, gates, experts, starts, is_prefill, starts_request, at_starts, at_gates):  # type: ignore[no-untyped-def]
    """Iterations one after the other, as `start_iteration` and `hear_gate` would do them.

    gates [L, T, J], experts [L, T, K], starts [n + 1], is_prefill and starts_request [n] -> at_starts [n, F, J], at_gates [n, L,
    H, J]; or [1, ...] where nobody wants them.
    """
    nothing = np.zeros((0, 0, 0), dtype=np.float32)
    for iteration in range(len(starts) - 1):
        rows = slice(starts[iteration], starts[iteration + 1])
        place = min(iteration, len(at_starts) - 1)
        if starts_request[iteration]:
            start_request(state)
        start_iteration(state, rows.stop - rows.start, is_prefill[iteration], at_starts[place])
        for layer in range(len(gates)):
            hear_gate(state, layer, gates[layer][rows], experts[layer][rows], nothing, at_gates[place, layer])


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _add_inputs(state, layer, row, count, place, source, slot):  # type: ignore[no-untyped-def]
    ids, values = state.memory.ids[source, slot], state.memory.values[source, slot]
    for entry in range(len(ids)):
        if values[entry] != _ZERO:
            state.answers.input_rows[layer, row, count] = place + ids[entry]
            state.answers.input_values[layer, row, count] = values[entry]
            count += 1
    return count


@njit(cache=True, nogil=True)
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
    )
    _read_ahead(state, layer, row, ahead, scores)
    to_probabilities(scores)


@njit(cache=True, nogil=True)
def _read_ahead(state, layer, row, ahead, scores):  # type: ignore[no-untyped-def]
    """Add what the routers applied ahead say: by how much each expert's log probability is above the K-th's."""
    num_layers, num_experts = state.networks.demands.shape
    state.answers.ahead[layer, row, :, :] = _ZERO
    for index in range(len(ahead)):
        stride, first = state.networks.strides[index], _first_output(state, index)
        if layer + stride < num_layers and first >= 0:
            margins = state.answers.ahead[layer, row, index]
            number = state.memory.numbers[place_asked(state.counters, row)]
            _margins(ahead[index, number], state.counters[TOP_K], margins)
            for expert in range(num_experts):
                scores[first + expert] += state.outputs.ahead_gains[layer, index, expert] * margins[expert]


@njit(cache=True, nogil=True)
def _first_output(state, index):  # type: ignore[no-untyped-def]
    """Where the outputs begin that are of the layer that a stride leads to, or NONE."""
    for place in range(len(state.networks.distances)):
        if state.networks.distances[place] == state.networks.strides[index]:
            return place * state.networks.demands.shape[1]
    return NONE


@njit(cache=True, nogil=True)
def _margins(probs, top_k, margins):  # type: ignore[no-untyped-def]
    kth = np.sort(probs)[len(probs) - min(top_k, len(probs))]
    for expert in range(len(probs)):
        ratio = max(float(probs[expert]), 1e-9) / max(float(kth), 1e-9)
        margins[expert] = max(min(np.float32(np.log(ratio)), _FARTHEST), -_FARTHEST)


@njit(cache=True, nogil=True)
def _teach_one(state, layer):  # type: ignore[no-untyped-def]
    """The network whose farthest layer foretold has just spoken learns, if it has not: that of `layer`, or, where this is below
    0, that of the last iteration."""
    if layer >= 0:
        if state.answers.is_pending[layer]:
            _teach(state, layer, state.memory.asked, state.memory.asked)
    elif state.counters[CONTINUES] and state.answers.is_pending[layer + len(state.networks.demands)]:
        _teach(state, layer + len(state.networks.demands), state.memory.previous, state.memory.asked)


@njit(cache=True, nogil=True)
def settle(state):  # type: ignore[no-untyped-def]
    """Networks that wait for an iteration that does not come learn from what has."""
    nowhere = np.full(len(state.memory.asked), NONE, dtype=np.int64)
    for layer in range(len(state.networks.demands)):
        if state.answers.is_pending[layer]:
            _teach(state, layer, state.memory.asked, nowhere)


@njit(cache=True, nogil=True)
def _teach(state, layer, slots, followers):  # type: ignore[no-untyped-def]
    """slots, followers: [S] where the rows are remembered that the network was asked about, and their next tokens."""
    num_experts = state.networks.demands.shape[1]
    state.answers.is_pending[layer] = False
    is_whole = state.counters[LEARNS] == ALWAYS
    rate = state.networks.rates[0 if is_whole else 1]
    errors = np.empty(state.outputs.bias.shape[1], dtype=np.float32)
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
            state.outputs.across[layer],
            state.outputs.bias[layer],
            state.outputs.vote_gains[layer],
            state.answers.votes[layer, row],
            state.answers.hidden[layer, row],
            errors,
            rate,
            is_whole,
        )


@njit(cache=True, nogil=True)
def _errors(state, target, slot, follower, probs, errors):  # type: ignore[no-untyped-def]
    """By how much each probability was too great; 0 where the layer has not spoken."""
    num_layers = len(state.networks.demands)
    source = slot if target < num_layers else follower
    target -= num_layers if target >= num_layers else 0
    errors[:] = _ZERO
    if source >= 0 and state.memory.demanded[target, source]:
        errors[:] = probs
        for place in range(state.memory.demanded[target, source]):
            errors[state.memory.ids[target, source, place]] -= _ONE


@njit(cache=True, nogil=True)
def _learn_ahead(state, layer, row, errors, rate):  # type: ignore[no-untyped-def]
    num_experts = state.networks.demands.shape[1]
    for index in range(len(state.networks.strides)):
        first = _first_output(state, index)
        for expert in range(num_experts if first >= 0 else 0):
            step = rate * errors[first + expert] * state.answers.ahead[layer, row, index, expert]
            state.outputs.ahead_gains[layer, index, expert] -= step


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _tell_popularity(state, num_rows, forecast):  # type: ignore[no-untyped-def]
    """How often the first layers' experts are demanded; K of J before anything is known."""
    num_experts = state.networks.demands.shape[1]
    prior = min(state.counters[TOP_K], num_experts) / num_experts
    for layer in range(len(forecast)):
        for expert in range(num_experts):
            share = (state.networks.demands[layer, expert] + prior) / (state.networks.num_heard[layer] + 1)
            forecast[layer, expert] = np.float32(1.0 - max(1.0 - share, 0.0) ** num_rows)
