"""Selection against brute force over all subsets, and the formulas of Eqs. 6-8."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finemoe.errors import FinemoeError
from finemoe.maps.selection import select_experts, threshold_of


def smallest_set_size(probs: np.ndarray, threshold: float, top_k: int) -> int:
    """Fewest experts of any subset that reaches the threshold, never under K: by trying every subset."""
    for size in range(1, len(probs) + 1):
        best = max(sum(subset) for subset in combinations(sorted(probs.astype(float), reverse=True), size))
        if best >= threshold:
            return max(size, top_k)
    return len(probs)


weights = arrays(np.float32, 7, elements=st.floats(2**-10, 1, width=32))


@given(weights, st.floats(0, 1), st.integers(1, 7))
def test_selected_set_is_the_smallest_that_reaches_the_threshold(raw, threshold, top_k):
    probs = raw / raw.sum()
    selected = select_experts(probs[None], np.array([threshold]), top_k)[0]
    assert selected.sum() == smallest_set_size(probs, threshold, top_k)
    assert selected.sum() >= top_k
    assert probs[selected].min() >= probs[~selected].max(initial=0.0)


def test_the_expert_that_crosses_the_threshold_is_included():
    probs = np.array([[0.5, 0.3, 0.125, 0.075]], dtype=np.float32)
    assert select_experts(probs, np.array([0.6]), 1).tolist() == [[True, True, False, False]]
    assert select_experts(probs, np.array([0.5]), 1).tolist() == [[True, False, False, False]]


def test_unknown_experts_of_top_k_traces_are_never_added():
    probs = np.array([[0.75, 0.25, 0.0, 0.0]], dtype=np.float32)
    assert select_experts(probs, np.array([1.0]), 2).sum() == 2
    assert select_experts(probs, np.array([1.0]), 3).sum() == 3  # K itself is always met


def test_rows_are_independent():
    probs = np.array([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25]], dtype=np.float32)
    assert select_experts(probs, np.array([0.1, 0.9]), 1).sum(axis=1).tolist() == [1, 3]


def test_threshold_is_one_minus_score_clipped():
    assert threshold_of(np.array([1.0, 0.25, -0.5, 1.0000001])).tolist() == [0.0, 0.75, 1.0, 0.0]


def test_bad_input_is_named():
    with pytest.raises(FinemoeError, match=r"top_k is 5; it must be in 1..3"):
        select_experts(np.ones((1, 3), dtype=np.float32) / 3, np.zeros(1), 5)
