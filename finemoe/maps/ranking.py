"""Makes an expert map rank as its router selects (section 4.1; docs/metrics.md, "What an expert map holds").

In the paper's models the softmax of the logits ranks experts as the router does. Other routers select by something else: by
sigmoid with a correction bias, within groups, or from a token table. The selected experts are known, so the map keeps the values
of the softmax and gives the greatest of them to the selected experts.
"""

import math

import numpy as np

from finemoe.compiling import njit

_LEAST_EXPONENT = -14  # of a normal half; below it the steps no longer shrink
_DIGITS = 10  # binary digits behind the point of a half


def rank_as_selected(probs: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Permute the values of each row so that the selected experts have the greatest.

    A row in which no unselected expert exceeds a selected one is left unchanged. In every other row the greatest values go to the
    selected experts and the rest to the others; within both groups experts keep their order. If the least value of the selected
    experts then equals the next one, it is raised by one step of half precision.

    Args:
        probs: [B, J] float32 distributions at half precision; changed in place.
        selected: [B, K] ids of the selected experts; an id of J or more is no expert.
    Returns:
        `probs`.
    """
    _rank_rows(probs, np.ascontiguousarray(selected, dtype=np.int64))
    return probs


@njit(cache=True, nogil=True)
def _rank_rows(probs, selected):  # type: ignore[no-untyped-def]
    num_experts = probs.shape[1]
    is_selected = np.empty(num_experts, dtype=np.bool_)
    for row in range(probs.shape[0]):
        values = probs[row]
        is_selected[:] = False
        least = np.float32(np.inf)
        for expert in selected[row]:
            if expert < num_experts:
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
    for expert in range(len(values)):  # into their places, the greatest first: what NumPy offers for it is slow to load
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
    """The next greater value of half precision."""
    exponent = math.frexp(value)[1] - 1 if value > 0 else _LEAST_EXPONENT
    return np.float32(value + 2.0 ** (max(exponent, _LEAST_EXPONENT) - _DIGITS))
