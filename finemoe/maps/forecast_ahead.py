"""Compiled input of a forecaster from the model's own routers, applied ahead of their turn."""

import numpy as np

from finemoe.maps import forecast_rows, forecast_state
from finemoe.maps.forecast_rows import place_asked
from finemoe.maps.forecast_state import NONE, TOP_K, inner
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, forecast_rows.__file__, forecast_state.__file__)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_FARTHEST = np.float32(4.0)  # clip, in log odds relative to the K-th expert, for a router applied ahead


@inner
def read_ahead(state, layer, row, ahead, scores):  # type: ignore[no-untyped-def]
    """Add the evidence of the routers applied ahead: each expert's log probability relative to the K-th expert's."""
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
    """Where the outputs begin for the layer that a stride leads to, or NONE."""
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


@inner
def learn_ahead(state, layer, row, errors, rate):  # type: ignore[no-untyped-def]
    num_experts = state.networks.demands.shape[1]
    for index in range(len(state.networks.strides)):
        first = _first_output(state, index)
        for expert in range(num_experts if first >= 0 else 0):
            step = rate * errors[first + expert] * state.answers.ahead[layer, row, index, expert]
            state.outputs.ahead_gains[layer, index, expert] -= step
