"""Expert maps: softmax, its refusal of NaN, and the coarse counts that maps generalise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finemoe.errors import EngineError, FinemoeError
from finemoe.maps.expert_map import activation_counts, from_logits, require_distribution
from finemoe.maps.ranking import as_half, pairwise_sum


@given(arrays(np.float32, (3, 5), elements=st.floats(-80, 80, width=32)))
def test_rows_are_distributions(logits):
    maps = from_logits(logits)
    assert (maps >= 0).all()
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, atol=1e-5)
    require_distribution(maps, 0)


def test_softmax_is_the_formula():
    logits = np.array([[0.0, 1.0, -2.0]])
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(from_logits(logits), expected, rtol=1e-6)


def test_nan_is_an_error_that_names_the_layer():
    with pytest.raises(EngineError, match="router of MoE layer 7 emitted NaN"):
        require_distribution(from_logits(np.array([[np.nan, 1.0]])), 7)


def test_summing_top_k_gives_the_coarse_counts():
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.ones(6), size=(11, 3))
    expected = np.zeros((3, 6), dtype=int)
    for map_ in maps:
        for layer in range(3):
            for expert in sorted(range(6), key=lambda e: -map_[layer, e])[:2]:
                expected[layer, expert] += 1
    np.testing.assert_array_equal(activation_counts(maps, 2), expected)


def test_top_k_out_of_range_is_named():
    with pytest.raises(FinemoeError, match=r"top_k is 0; it must be in 1..4"):
        activation_counts(np.ones((1, 1, 4)), 0)


def test_sums_have_the_bits_of_numpys():
    rng = np.random.default_rng(3)
    for length in [*range(1, 300), 511, 512, 513, 1000, 2047, 4097]:
        values = rng.random(length).astype(np.float32)
        assert pairwise_sum(values) == np.add.reduce(values[None], axis=-1)[0], length


def test_halves_are_rounded_as_numpy_rounds_them():
    """Every half from 0 to 1, what lies between two of them, and the floats beside both."""
    halves = np.arange(0x3C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    exact = np.concatenate([halves, between])
    values = np.clip(np.concatenate([exact, np.nextafter(exact, np.float32(2)), np.nextafter(exact, np.float32(-1))]), 0, 1)
    rounded = np.array([as_half(value) for value in values], dtype=np.float32)
    np.testing.assert_array_equal(rounded, values.astype(np.float16).astype(np.float32))
