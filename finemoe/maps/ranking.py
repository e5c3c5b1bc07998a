"""Makes an expert map rank as its router selects (section 4.1, and docs/metrics.md, "What an expert map holds").

The softmax of a router's logits ranks as the router does in the paper's models. Others select by something else: by sigmoid with a
correction bias, within groups, or from a table of tokens. What they select is known, so the map keeps the softmax's values and
hands the greatest of them to the experts selected.
"""

import math

import numpy as np

from finemoe.compiling import njit

_LEAST_EXPONENT = -14  # of a normal half; below it the steps no longer shrink
_DIGITS = 10  # binary digits behind the point of a half


def rank_as_selected(probs: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Distributions [B, J] whose greatest entries are the experts selected, each row summing to what it did.

    A row that no unselected expert leads stays as it is (equal entries count as selected ones do). In any other, the row's values are
    dealt out anew: the greatest to the selected experts, the rest to the others, both in the order they had. Should the least value
    of the selected tie with the next, it is raised by one step of half precision.

    Args:
        probs: float32 with the precision of a trace (half); changed in place. selected: [B, K] ids; one of J or more is no expert.
    Returns:
        `probs`.
    """
    _deal_out(probs, np.ascontiguousarray(selected, dtype=np.int64))
    return probs


@njit(cache=True, nogil=True)
def _deal_out(probs, selected):  # type: ignore[no-untyped-def]
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
            _deal_out_row(values, is_selected)


@njit(cache=True, nogil=True)
def _deal_out_row(values, is_selected):  # type: ignore[no-untyped-def]
    order = np.argsort(-values, kind="mergesort")
    dealt = values[order]
    num_selected = is_selected.sum()
    next_selected, next_other = 0, num_selected
    for expert in order:
        if is_selected[expert]:
            values[expert] = dealt[next_selected]
            next_selected += 1
        else:
            values[expert] = dealt[next_other]
            next_other += 1
    last = dealt[num_selected - 1]
    if num_selected < len(dealt) and dealt[num_selected] == last:
        for expert in range(len(values)):
            if is_selected[expert] and values[expert] == last:
                values[expert] = _raised(last)


@njit(cache=True, nogil=True)
def _raised(value):  # type: ignore[no-untyped-def]
    """The next greater value of half precision."""
    exponent = math.frexp(value)[1] - 1 if value > 0 else _LEAST_EXPONENT
    return np.float32(value + 2.0 ** (max(exponent, _LEAST_EXPONENT) - _DIGITS))
