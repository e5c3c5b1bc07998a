"""The claim on the store's capacity (Fig. 16a), on made-up similarities and on the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.capacity import capacity_claim, gains_by_doubling
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim


def line(values: list[float]) -> pd.DataFrame:
    capacities = [250, 500, 1000, 2000, 4000]
    return pd.DataFrame({"capacity": capacities, "similarity": values, "model": "m", "dataset": "d", "search": "trajectory"})


def test_a_knee_is_a_slope_that_halves():
    steep_then_flat = gains_by_doubling(line([0.5, 0.7, 0.9, 0.91, 0.92]))
    assert steep_then_flat.before.item() == pytest.approx(0.2)
    assert steep_then_flat.after.item() == pytest.approx(0.01)
    assert capacity_claim(steep_then_flat).verdict == "holds"
    rising = capacity_claim(gains_by_doubling(line([0.5, 0.6, 0.7, 0.8, 0.9])))
    assert (rising.verdict, rising.reproduced.split(";")[0]) == (
        "does not hold",
        "decided by at most half as much after it: 0 of 1 (miniatures)",
    )


@pytest.mark.parametrize(("end", "is_flatter"), [(1.0, True), (1.002, False)])
def test_half_the_slope_is_flat(end, is_flatter):
    """0.25 per doubling before, 0.125 after."""
    found = gains_by_doubling(line([0.25, 0.5, 0.75, 0.875, end]))
    assert found.is_flatter.tolist() == [is_flatter]


def test_falling_does_not_rise():
    falling = gains_by_doubling(line([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert falling.is_rising.tolist() == [False]
    assert capacity_claim(falling).verdict == "does not hold"


def test_most_series_are_enough_to_hold_weaker():
    mostly = [line([0.5, 0.7, 0.9, 0.91, end]).assign(dataset=name) for name, end in (("a", 0.92), ("b", 0.92), ("c", 1.4))]
    claim = capacity_claim(gains_by_doubling(pd.concat(mostly)))
    assert claim.verdict == "holds weaker"
    assert "before 1 K in 3 of 3 series, and at most half as much after it in 2." in claim.why


def test_figure_16a_is_the_shipped_claim():
    assert outcome(capacity_claim(gains_by_doubling(figure_table("f16a")))) == shipped_claim("F16a")
