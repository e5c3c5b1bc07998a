"""The claim on the size of the expert cache (Fig. 12), on made-up gains and on the shipped tables."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.gains import against_on_demand
from finemoe.artifact.verdicts.memory import cache_limit_claim, cache_limit_tests
from tests.artifact.verdicts.made_up import gains
from tests.artifact.verdicts.shipped import figure_table, outcome, real_requests, shipped_claim, shipped_gains, shipped_requests


def limited(smallest: pd.DataFrame, largest: pd.DataFrame) -> pd.DataFrame:
    """Tests of TPOT gains at 6 and at 48 GB."""
    return cache_limit_tests(at_limits(smallest, largest))


def at_limits(smallest: pd.DataFrame, largest: pd.DataFrame) -> pd.DataFrame:
    both = pd.concat([smallest.assign(cache_limit_gb=6), largest.assign(cache_limit_gb=48)])
    return both[both.quantity == "tpot_s"]


def test_lowest_at_the_smallest_cache_with_gaps_that_close_holds():
    assert cache_limit_claim(limited(gains(0.5), gains(0.0))).verdict == "holds"


def test_one_baseline_ahead_is_not_the_lowest():
    claim = cache_limit_claim(limited(gains(0.5, ProMoE=-0.1), gains(0.0)))
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by TPOT the lowest at 6 GB: 0 of 1 (gpt-oss-20b); ")


@pytest.mark.parametrize(("gap", "verdict"), [(0.02, "holds"), (-0.02, "holds"), (0.021, "does not hold")])
def test_a_gap_of_2_percent_is_closed(gap, verdict):
    assert cache_limit_claim(limited(gains(0.5), gains(gap))).verdict == verdict


def test_cache_limits_are_those_that_every_model_has():
    tpot = at_limits(gains(), gains())
    only_one = tpot[(tpot.model == "gpt-oss-20b") & (tpot.cache_limit_gb == 48)].assign(cache_limit_gb=96)
    tests = cache_limit_tests(pd.concat([tpot, only_one, tpot[tpot.cache_limit_gb == 6].assign(cache_limit_gb=12)]))
    assert set(tests.cache_limit_gb) == {6, 48}
    claim = cache_limit_claim(tests)
    assert "at 6 GB" in claim.reproduced
    assert "At 48 GB" in claim.why


def test_figure_12_is_the_shipped_claim():
    means, real = figure_table("f12"), real_requests(testbed="6x-rtx3090")
    real = real[real.cache_limit_gb.notna()]
    found = shipped_gains(means, real, by=("model", "dataset", "cache_limit_gb"))
    everything = shipped_requests(means, real)
    floor = against_on_demand(everything[everything.cache_limit_gb == everything.cache_limit_gb.min()])
    tests = cache_limit_tests(found[found.quantity == "tpot_s"])
    assert outcome(cache_limit_claim(tests, floor)) == shipped_claim("F12")
