"""The compiled arithmetic of a forecaster's networks: two layers, from the few entries kept of each gate to the experts ahead.

Every sum has a fixed order: loops over many values add to as many sums, `out[q] += x * weights[q]`, or to one at a time. Results
therefore depend neither on the width of a machine's registers nor on the number of rows computed at once, to the last bit.
"""

import math

import numpy as np

from finemoe.compiling import borrowing
from finemoe.maps.forecast_state import inner

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SMALL = np.float32(2e-3)  # smaller errors of a probability are ignored in learning


@inner
def add_weighted(weights, places, factors, size, sums):  # type: ignore[no-untyped-def]
    """sums += factors[i] * weights[places[i]] for the first `size` i, in order; weights [., n], sums [n]."""
    i = 0
    while i + 4 <= size:  # four rows a pass: a quarter of the memory traffic on the sums, added in the same order
        x0, x1, x2, x3 = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        w0, w1, w2, w3 = weights[places[i]], weights[places[i + 1]], weights[places[i + 2]], weights[places[i + 3]]
        for n in range(len(sums)):
            sums[n] = sums[n] + x0 * w0[n] + x1 * w1[n] + x2 * w2[n] + x3 * w3[n]
        i += 4
    while i < size:
        x0, w0 = factors[i], weights[places[i]]
        for n in range(len(sums)):
            sums[n] += x0 * w0[n]
        i += 1


@inner
def take_steps(weights, places, factors, size, steps):  # type: ignore[no-untyped-def]
    """weights[places[i]] -= factors[i] * steps for the first `size` i; weights [., n], steps [n]."""
    for i in range(size):
        x, w = factors[i], weights[places[i]]
        for n in range(len(steps)):
            w[n] -= x * steps[n]


@inner
def nonzero(values, places, found):  # type: ignore[no-untyped-def]
    """Find the nonzero values and their indices, ascending: places and found [n or more] -> their number."""
    count = 0
    for n in range(len(values)):
        if values[n] != _ZERO:
            places[count], found[count] = n, values[n]
            count += 1
    return count


@borrowing
def run_network(  # type: ignore[no-untyped-def]
    inputs, places, factors, size, hidden_bias, outputs, output_bias, gains, votes, hidden, scores, scratch
):
    """Log odds of every expert ahead.

    inputs [., N], the input as `size` places and factors, outputs [N, Q], gains and votes [Q] -> hidden [N], scores [Q].
    """
    for n in range(len(hidden)):
        hidden[n] = hidden_bias[n]
    add_weighted(inputs, places, factors, size, hidden)
    for n in range(len(hidden)):
        hidden[n] = max(hidden[n], _ZERO)
    active, values = scratch.active, scratch.active_values
    count = nonzero(hidden, active, values)
    for q in range(len(scores)):
        scores[q] = output_bias[q] + gains[q] * votes[q]
    add_weighted(outputs, active, values, count, scores)


@borrowing
def to_probabilities(scores):  # type: ignore[no-untyped-def]
    """Convert log odds to probabilities, in place."""
    for q in range(len(scores)):
        scores[q] = np.float32(1.0 / (1.0 + math.exp(-max(min(float(scores[q]), 30.0), -30.0))))


@borrowing
def teach_network(  # type: ignore[no-untyped-def]
    inputs, places, factors, size, hidden_bias, outputs, output_bias, gains, votes, hidden, errors, rate, is_whole, scratch
):
    """One gradient step on the cross-entropy, from the errors of the probabilities, [Q] (changed); other arguments as in
    `run_network`. Only a whole step changes the first layer."""
    for q in range(len(errors)):
        errors[q] = rate * errors[q] if abs(errors[q]) >= _SMALL else _ZERO
    active, values = scratch.active, scratch.active_values
    count = nonzero(hidden, active, values)
    if is_whole:
        num_wrong, blame = nonzero(errors, scratch.wrong, scratch.steps), scratch.blame
        _blame(outputs, active, count, scratch.wrong, scratch.steps, num_wrong, blame)
        for n in range(len(hidden)):
            hidden_bias[n] -= blame[n]
        take_steps(inputs, places, factors, size, blame)
    take_steps(outputs, active, values, count, errors)
    for q in range(len(errors)):
        output_bias[q] -= errors[q]
        gains[q] -= errors[q] * votes[q]


@inner
def _blame(outputs, active, count, wrong, steps, num_wrong, blame):  # type: ignore[no-untyped-def]
    """Gradient of each active unit: sum_q steps[q] * outputs[n, wrong[q]], in order; blame [N], 0 for other units."""
    for n in range(len(blame)):
        blame[n] = _ZERO
    i = 0
    while i + 4 <= count:  # four sums a pass, since a single sum would wait for its own previous addition
        w0, w1, w2, w3 = outputs[active[i]], outputs[active[i + 1]], outputs[active[i + 2]], outputs[active[i + 3]]
        sum0 = sum1 = sum2 = sum3 = _ZERO
        for place in range(num_wrong):
            q, step = wrong[place], steps[place]
            sum0 += step * w0[q]
            sum1 += step * w1[q]
            sum2 += step * w2[q]
            sum3 += step * w3[q]
        blame[active[i]], blame[active[i + 1]], blame[active[i + 2]], blame[active[i + 3]] = sum0, sum1, sum2, sum3
        i += 4
    while i < count:
        w0, sum0 = outputs[active[i]], _ZERO
        for place in range(num_wrong):
            sum0 += steps[place] * w0[wrong[place]]
        blame[active[i]] = sum0
        i += 1
