"""Rounds of measurements end when what they are for is known well enough, and not before."""

import itertools

import numpy as np
import pytest

from finemoe.artifact.pipeline.timing import ratios, rounds_until_narrow


def test_rounds_end_when_the_intervals_are_narrow():
    drift = itertools.count(1)
    table = rounds_until_narrow({"eager": lambda: float(next(drift)), "engine": lambda: 0.5 * float(next(drift))}, 30, 0.5)
    assert table["round"].nunique() == 10
    assert table.variant.tolist() == ["eager", "engine"] * 10
    assert table.seconds_per_token.iloc[::2].tolist() == list(range(1, 21, 2))


@pytest.mark.parametrize(("num_rounds", "interval_width"), [(30, 0.05), (12, 0.0), (3, 1.0)])
def test_rounds_go_on_while_an_interval_is_wide_and_there_are_any_left(num_rounds, interval_width):
    rng = np.random.default_rng(0)
    measures = {"eager": lambda: 1.0, "steady": lambda: 2.0, "noisy": lambda: float(rng.uniform(1, 3))}
    assert rounds_until_narrow(measures, num_rounds, interval_width)["round"].nunique() == num_rounds


def test_what_ends_the_rounds_is_narrow_then_and_was_not_before():
    rng = np.random.default_rng(1)
    table = rounds_until_narrow({"eager": lambda: 1.0, "noisy": lambda: float(rng.normal(2, 0.15))}, 200, 0.05)
    widths = []
    for last in range(9, table["round"].max() + 1):
        (found,) = ratios(table[table["round"] <= last]).itertuples()
        widths.append((found.high - found.low) / found.ratio)
    assert len(widths) > 1
    assert widths[-1] <= 0.05 < min(widths[:-1])
    assert found.num_rounds == table["round"].nunique()
