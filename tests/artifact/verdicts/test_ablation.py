"""The claim on what each part of the prediction is worth (Fig. 14a), on made-up hit rates and on the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.ablation import ablation_claim, step_tests, worst_tests
from tests.artifact.verdicts.shipped import figure_table, miniatures, outcome, shipped_claim

HITS = {"on-demand (LRU)": 0.4, "Speculate": 0.8, "Learn": 0.7, "Hit count": 0.5, "Map (T)": 0.8, "Map (T+S)": 0.85}
HITS |= {"Map (T+S+δ)": 0.9}
OF_REAL_ROUTING = ("on-demand (LRU)", "Learn", "Hit count", "Map (T)")
# What a step adds: the predictor with it and without it.
STEPS = {"semantic": ("Map (T+S)", "Map (T)"), "δ": ("Map (T+S+δ)", "Map (T+S)")}


def hit_rates(on_miniatures: dict[str, float] | None = None, on_real_routing: dict[str, float] | None = None) -> pd.DataFrame:
    """Two panels of a miniature and one of real routing, with these hit rates in place of HITS."""
    mini, real = HITS | (on_miniatures or {}), HITS | (on_real_routing or {})
    rows = [("mixtral-mini", dataset, name, share) for dataset in ("a", "b") for name, share in mini.items()]
    rows += [("gpt-oss-20b", "mixed", name, real[name]) for name in OF_REAL_ROUTING]
    return pd.DataFrame(rows, columns=["model", "dataset", "system", "hit_rate"])


def steps(semantic: float = 0.05, delta: float = 0.05) -> pd.DataFrame:
    """Lower bounds of what both steps add in two panels."""
    lows = {"semantic": semantic, "δ": delta}
    rows = [("mixtral-mini", dataset, step, low + 0.01, low) for dataset in ("a", "b") for step, low in lows.items()]
    return step_tests(pd.DataFrame(rows, columns=["model", "dataset", "step", "value", "low"]))


def test_rising_with_hit_counts_worst_holds():
    claim = ablation_claim(hit_rates(), steps())
    assert claim.verdict == "holds"
    assert "semantic search adds in 2 of 2 panels (+0.060 to +0.060)" in claim.why


@pytest.mark.parametrize(("low", "rises"), [(0.0011, True), (0.001, False), (-0.1, False)])
def test_a_step_rises_above_a_thousandth(low, rises):
    tests = steps(delta=low)
    assert tests.rises.tolist() == [True, rises, True, rises]
    claim = ablation_claim(hit_rates(), tests)
    assert claim.verdict == ("holds" if rises else "does not hold")
    assert rises or claim.reproduced.startswith("decided by δ adds: 0 of 2 (miniatures); ")


@pytest.mark.parametrize("other", ["Speculate", "Learn", "Map (T)", "Map (T+S)", "Map (T+S+δ)"])
def test_hit_counts_are_worst_only_below_every_other_predictor(other):
    better, equal, worse = (worst_tests(hit_rates({other: share})).loc["mixtral-mini"] for share in (0.6, 0.5, 0.45))
    assert better.all()
    assert not equal.any()
    assert not worse.any()


def test_no_prediction_is_no_predictor():
    assert worst_tests(hit_rates({"on-demand (LRU)": 0.1})).all()


def test_real_routing_is_a_statement_by_itself():
    claim = ablation_claim(hit_rates(on_real_routing={"Map (T)": 0.45}), steps())
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by hit counts the worst: 0 of 1 (gpt-oss-20b); ")


def steps_of_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """What the steps add, with outer bounds: paired intervals are not in the table."""
    wide = table.pivot_table(index=["model", "dataset"], columns="system", values=["hit_rate", "low", "high"], sort=False)
    found = [
        pd.DataFrame({"value": wide["hit_rate"][more] - wide["hit_rate"][less], "low": wide["low"][more] - wide["high"][less]})
        .assign(step=step)
        .reset_index()
        for step, (more, less) in STEPS.items()
    ]
    return step_tests(pd.concat(found))


def test_figure_14a_is_the_shipped_claim():
    table = figure_table("f14a")
    assert outcome(ablation_claim(table, steps_of_intervals(miniatures(table)))) == shipped_claim("F14a")
