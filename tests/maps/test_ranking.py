"""Maps that rank as routers select, against the definition written out row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from finemoe.maps.ranking import rank_as_selected

NUM_EXPERTS = 6


def halves(shape):
    """Distributions as a trace holds them: few distinct values, so that ties are common, and zeros."""
    whole = hnp.arrays(np.int64, shape, elements=st.integers(0, 4))
    return whole.map(lambda counts: (counts / np.maximum(counts.sum(-1, keepdims=True), 1)).astype(np.float16).astype(np.float32))


@st.composite
def rows_and_choices(draw):
    num_rows, top_k = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    chosen = st.lists(st.integers(0, NUM_EXPERTS), min_size=top_k, max_size=top_k)  # repeated, and one past the last
    selected = draw(st.lists(chosen, min_size=num_rows, max_size=num_rows))
    return draw(halves((num_rows, NUM_EXPERTS))), np.array(selected)


@given(rows_and_choices())
def test_the_greatest_entries_are_the_experts_selected(case):
    probs, selected = case
    ranked = rank_as_selected(probs.copy(), selected)
    for before, after, chosen in zip(probs, ranked, selected, strict=True):
        experts = sorted({expert for expert in chosen.tolist() if expert < NUM_EXPERTS})
        others = [expert for expert in range(NUM_EXPERTS) if expert not in experts]
        if not experts or not others or before[experts].min() >= before[others].max():
            np.testing.assert_array_equal(after, before)
            continue
        assert after[experts].min() > after[others].max()
        expected = np.sort(before)[::-1]
        np.testing.assert_array_equal(np.sort(after[others])[::-1], expected[len(experts) :])
        steps = np.spacing(expected[: len(experts)].astype(np.float16)).astype(np.float32)
        differences = np.sort(after[experts])[::-1] - expected[: len(experts)]
        assert ((differences == 0) | (differences == steps)).all()  # a tie is broken by one step of half precision
        np.testing.assert_array_equal(after, after.astype(np.float16).astype(np.float32))
        for group in (experts, others):  # among themselves they keep their order
            pairs = [(a, b) for a in group for b in group if before[a] > before[b]]
            assert all(after[a] >= after[b] for a, b in pairs)


def test_what_ranks_as_selected_keeps_its_bytes():
    probs = np.array([[0.5, 0.25, 0.25, 0.0]], dtype=np.float32)
    for selected in ([[0, 1]], [[0, 2]], [[2, 0]]):
        np.testing.assert_array_equal(rank_as_selected(probs.copy(), np.array(selected)), probs)


def test_values_are_dealt_out_by_hand():
    probs = np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]], dtype=np.float32)
    ranked = rank_as_selected(probs.copy(), np.array([[3, 1]]))
    np.testing.assert_array_equal(ranked, [[0.125, 0.5, 0.0625, 0.25, 0.0625]])


@pytest.mark.parametrize("value", [0.0, 2.0**-24, 3 * 2.0**-24, 2.0**-14, 0.1, 0.2])
def test_a_tie_is_broken_by_the_next_half(value):
    half = np.float32(np.float16(value))
    probs = np.array([[1 - 3 * half, half, half, half]], dtype=np.float32)
    ranked = rank_as_selected(probs.copy(), np.array([[2, 3]]))
    assert sorted(ranked[0, 2:].tolist())[0] == np.float32(np.nextafter(np.float16(half), np.float16(1)))
