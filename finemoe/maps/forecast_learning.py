"""The compiled learning of a forecaster: once all layers that a network forecast have run, it takes one gradient step."""

import functools

import numpy as np

from finemoe.maps import forecast_ahead, forecast_network, forecast_rows, forecast_state, forecast_tokens
from finemoe.maps.forecast_ahead import learn_ahead
from finemoe.maps.forecast_network import teach_network
from finemoe.maps.forecast_state import ALWAYS, CONTINUES, LEARNS, NUM_ASKED, ROWS, TOKENS, inner
from finemoe.maps.forecast_tokens import learn_token_gains
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = forecast_ahead, forecast_network, forecast_rows, forecast_state, forecast_tokens
forget_stale_kernels(__file__, *(one.__file__ for one in _SOURCES))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_RELIANCE_RATE, _LEAST_RELIANCE, _MOST_RELIANCE = np.float32(3e-4), np.float32(0.2), np.float32(2.0)

inlined = functools.partial(inner, inline="always")  # otherwise compiled again with everything that it calls


@inlined
def teach_one(state, layer):  # type: ignore[no-untyped-def]
    """Train the network whose farthest forecast layer has just run, if it has not been trained: that of `layer`, or, if this is
    below 0, that of the last iteration."""
    if layer >= 0:
        if state.answers.is_pending[layer]:
            _teach(state, layer, state.memory.asked, state.memory.asked)
    elif state.counters[CONTINUES] and state.answers.is_pending[layer + len(state.networks.demands)]:
        _teach(state, layer + len(state.networks.demands), state.memory.previous, state.memory.asked)


@inlined
def settle(state):  # type: ignore[no-untyped-def]
    """Train networks that wait for an iteration that does not come, with what is known."""
    for layer in range(len(state.networks.demands)):
        if state.answers.is_pending[layer]:
            _teach(state, layer, state.memory.asked, state.scratch.nowhere)


@inner
def _teach(state, layer, slots, followers):  # type: ignore[no-untyped-def]
    """slots, followers: [S] slots of the rows that the network was run on, and of their next tokens."""
    num_experts = state.networks.demands.shape[1]
    state.answers.is_pending[layer] = False
    is_whole = state.counters[LEARNS] == ALWAYS
    rate = state.networks.rates[0 if is_whole else 1]
    errors = state.scratch.errors
    for row in range(state.counters[NUM_ASKED]):
        for index in range(len(state.networks.distances)):
            part, target = slice(index * num_experts, (index + 1) * num_experts), layer + state.networks.distances[index]
            _errors(state, target, slots[row], followers[row], state.answers.probs[layer, row, part], errors[part])
        _learn_reliance(state, ROWS, state.outputs.vote_gains[layer], state.answers.votes[layer, row], errors)
        _learn_reliance(state, TOKENS, state.outputs.token_gains[layer], state.answers.token_votes[layer, row], errors)
        learn_ahead(state, layer, row, errors, rate)
        learn_token_gains(state, layer, row, errors, rate)
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
    """The error of each probability, positive if it was too high; 0 if the layer has not run."""
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
def _learn_reliance(state, source, gains, votes, errors):  # type: ignore[no-untyped-def]
    """One gradient step for the factor that scales all votes of a source at a distance; gains, votes, errors [Q]."""
    num_experts = state.networks.demands.shape[1]
    for index in range(len(state.networks.distances)):
        slope, reliance = _ZERO, state.outputs.reliance[source, index]
        for place in range(index * num_experts, (index + 1) * num_experts):
            slope += errors[place] * gains[place] * votes[place]
        reliance -= _RELIANCE_RATE * slope / reliance
        state.outputs.reliance[source, index] = min(max(reliance, _LEAST_RELIANCE), _MOST_RELIANCE)
