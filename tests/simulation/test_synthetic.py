"""Synthetic routing has the statistics it was made for."""

import numpy as np
import pytest

from finemoe.simulation.synthetic import Recipe, Statistics, fitted, statistics_of, synthetic_trace

SIZES = (12, 32, 4)


def test_statistics_of_nothing_but_popularity():
    """Every token wants the same experts."""
    found = statistics_of(synthetic_trace(Recipe(1.0, 0.0, 0.0, 4), *SIZES, 10, 12), recall=0.5)
    assert (found.reuse, found.within, found.across) == (1.0, 1.0, 1.0)


def test_statistics_of_chance():
    """Without popularity, persistence and shared structure, sets overlap as drawn at random: K / J."""
    found = statistics_of(synthetic_trace(Recipe(0.0, 0.0, 0.0, 128), *SIZES, 20, 40), recall=0.5)
    assert found.reuse == pytest.approx(4 / 32, abs=0.02)
    assert found.across == pytest.approx(4 / 32, abs=0.02)


def test_a_recipe_is_fitted_to_statistics():
    wanted = Statistics(reuse=0.43, within=0.31, across=0.19, recall=0.6)
    recipe = fitted(wanted, *SIZES)
    found = statistics_of(synthetic_trace(recipe, *SIZES, 30, 60))
    for name in ("reuse", "within", "across", "recall"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=0.08), name


def test_same_seed_same_trace():
    one, other = (synthetic_trace(Recipe(0.2, 0.2, 0.5, 8), *SIZES, 4, 5, seed=9) for _ in range(2))
    np.testing.assert_array_equal(one.probs, other.probs)
    assert one.splits == ("history",) * 3 + ("served",)
