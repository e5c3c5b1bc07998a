"""Make an expert map rank experts as its router selects them (section 4.1; docs/metrics.md, "What an expert map holds").

In the paper's models, the softmax of the logits ranks experts as the router does. Other routers select differently: by sigmoid
with a correction bias, within groups, or from a token table. The selected experts are known, so the map keeps the values of the
softmax and assigns the largest of them to the selected experts.
"""

import math

import numpy as np

from finemoe.compiling import njit

_LEAST_EXPONENT = -14  # of a normal half; below it the step size is constant
_DIGITS = 10  # fractional binary digits of a half
_LEAST_NORMAL, _HALF_STEP, _NO_PLACES = np.float32(2.0**-14), np.float32(2.0**-24), np.float32(2.0**23)
_LANES, _BLOCK, _DEPTH = 8, 128, 48  # structure of NumPy's pairwise summation


def rank_as_selected(probs: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Permute the values of each row so that the selected experts have the largest.

    A row in which no unselected expert exceeds a selected one is left unchanged. In every other row, the largest values go to the
    selected experts and the rest to the others; within both groups, experts keep their order. If the smallest value of the
    selected experts then equals the next one, it is raised by one step of half precision.

    Args:
        probs: [B, J] float32 distributions at half precision; changed in place.
        selected: [B, K] ids of the selected experts; ids of J or more are not experts.
    Returns:
        `probs`.
    """
    _rank_rows(probs, np.ascontiguousarray(selected, dtype=np.int64))
    return probs


@njit(cache=True, nogil=True)
def record_rows(values, selected):  # type: ignore[no-untyped-def]
    """Scale float32 rows [B, J] to sum to 1, round them to half precision, and `rank_as_selected`, all in place.

    Returns:
        Whether the rows could be scaled: no NaN, and a positive sum.
    """
    for row in range(values.shape[0]):
        total = pairwise_sum(values[row])
        if not total > 0:
            return False
        for expert in range(values.shape[1]):
            values[row, expert] = as_half(values[row, expert] / total)
    _rank_rows(values, selected)
    return True


@njit(cache=True, nogil=True)
def pairwise_sum(values):  # type: ignore[no-untyped-def]
    """The sum of float32 values, [n], in NumPy's order of addition (eight parallel sums, halves beyond 128), which gives the bits
    of `expert_map.from_logits`.

    The halves are on a stack, because Numba cannot cache a compiled function that calls itself (Numba 0.68.1).
    """
    lengths, halves, depth = np.empty(_DEPTH, dtype=np.int64), np.zeros(_DEPTH, dtype=np.int64), 0
    sums, begin, total = np.empty(_DEPTH, dtype=np.float32), 0, np.float32(0.0)
    lengths[0] = len(values)
    while True:
        if lengths[depth] > _BLOCK:  # descend to the first half
            half = lengths[depth] // 2
            lengths[depth + 1], halves[depth + 1] = half - half % _LANES, 0
            depth += 1
            continue
        total = _block_sum(values[begin : begin + lengths[depth]])
        begin += lengths[depth]
        while depth and halves[depth]:  # both halves are done
            depth -= 1
            total = sums[depth] + total
        if not depth:
            return total
        sums[depth - 1] = total  # continue with the second half
        lengths[depth], halves[depth] = lengths[depth - 1] - lengths[depth], 1


@njit(cache=True, nogil=True)
def _block_sum(values):  # type: ignore[no-untyped-def]
    """The sum of at most one block."""
    whole, total = len(values) - len(values) % _LANES, np.float32(0.0)
    if whole:
        sums = values[:_LANES].copy()
        for place in range(_LANES, whole, _LANES):
            for lane in range(_LANES):
                sums[lane] += values[place + lane]
        total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
    for place in range(whole, len(values)):
        total += values[place]
    return total


@njit(cache=True, nogil=True)
def as_half(value):  # type: ignore[no-untyped-def]
    """Round a float32 from 0 to 1 to half precision, ties to even."""
    step = _HALF_STEP if value < _LEAST_NORMAL else np.float32(2.0 ** (math.frexp(value)[1] - 1 - _DIGITS))
    return np.float32(_round_even(value / step) * step)


@njit(cache=True, nogil=True)
def _round_even(value):  # type: ignore[no-untyped-def]
    """Round values below 2048 to even, exactly: adding 2^23 leaves a float32 no fractional digits."""
    return np.float32(np.float32(value + _NO_PLACES) - _NO_PLACES)


@njit(cache=True, nogil=True)
def _rank_rows(probs, selected):  # type: ignore[no-untyped-def]
    num_experts = probs.shape[1]
    is_selected = np.empty(num_experts, dtype=np.bool_)
    for row in range(probs.shape[0]):
        values = probs[row]
        is_selected[:] = False
        least = np.float32(np.inf)
        for expert in selected[row]:
            if 0 <= expert < num_experts:
                is_selected[expert] = True
                least = min(least, values[expert])
        is_led = False
        for expert in range(num_experts):
            is_led |= not is_selected[expert] and values[expert] > least
        if is_led:
            _permute_row(values, is_selected)


@njit(cache=True, nogil=True)
def _permute_row(values, is_selected):  # type: ignore[no-untyped-def]
    order, ordered = np.empty(len(values), dtype=np.int64), np.empty(len(values), dtype=np.float32)
    num_selected = 0
    for expert in range(len(values)):  # insertion sort, largest first; NumPy's sorting is slow to load in compiled code
        place = expert
        while place > 0 and ordered[place - 1] < values[expert]:
            order[place], ordered[place] = order[place - 1], ordered[place - 1]
            place -= 1
        order[place], ordered[place] = expert, values[expert]
        num_selected += int(is_selected[expert])
    next_selected, next_other = 0, num_selected
    for ranked in order:
        if is_selected[ranked]:
            values[ranked] = ordered[next_selected]
            next_selected += 1
        else:
            values[ranked] = ordered[next_other]
            next_other += 1
    last = ordered[num_selected - 1]
    if num_selected < len(ordered) and ordered[num_selected] == last:
        for expert in range(len(values)):
            if is_selected[expert] and values[expert] == last:
                values[expert] = _raised(last)


@njit(cache=True, nogil=True)
def _raised(value):  # type: ignore[no-untyped-def]
    """The next larger value in half precision."""
    exponent = math.frexp(value)[1] - 1 if value > 0 else _LEAST_EXPONENT
    return np.float32(value + 2.0 ** (max(exponent, _LEAST_EXPONENT) - _DIGITS))


@njit(cache=True)
def are_within(values, least, greatest):  # type: ignore[no-untyped-def]
    """Whether all values, [n], are within two bounds; NaN is not. (Runs in every layer; NumPy takes ten times as long.)"""
    for value in values:  # noqa: SIM110 - no generators in compiled code
        if not least <= value <= greatest:
            return False
    return True
