"""The claims on systems side by side (Figs. 10 and 13), on made-up gains and on the shipped tables."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.gains import against_on_demand
from finemoe.artifact.verdicts.systems import high_end_claim, high_end_tests, systems_claim
from tests.artifact.verdicts.made_up import gains
from tests.artifact.verdicts.shipped import figure_table, outcome, real_requests, shipped_claim, shipped_gains, shipped_requests

OF_FIGURE = {
    "f10": real_requests(testbed="6x-rtx3090", expert_memory=0.25),
    "f13": real_requests(testbed="a100-80gb", expert_memory=0.25),
}


def test_ahead_of_every_baseline_holds():
    claim = systems_claim("F10", "Fig. 10", gains())
    assert claim.verdict == "holds"
    assert "No exception." in claim.why


def test_behind_one_baseline_on_real_routing_holds_weaker():
    claim = systems_claim("F10", "Fig. 10", gains(ProMoE=-0.1))
    assert claim.verdict == "holds weaker"
    assert claim.reproduced.startswith("decided by hit rate above a baseline's: 2 of 3 (gpt-oss-20b); miniatures: ")
    assert "ProMoE in hit rate on gpt-oss-20b" in claim.why


def test_behind_half_of_the_baselines_does_not_hold():
    """Two of the four in latency, on real routing alone."""
    behind = {"ProMoE": -0.1, "DeepSpeed-Inference": -0.1}
    assert systems_claim("F10", "Fig. 10", gains(**behind)).verdict == "does not hold"


@pytest.mark.parametrize(("low", "verdict"), [(1e-9, "holds"), (0.0, "does not hold")])
def test_an_interval_that_touches_zero_is_no_gain(low, verdict):
    assert systems_claim("F10", "Fig. 10", gains().assign(low=low)).verdict == verdict


def test_without_real_routing_no_verdict_leans_on_it():
    """None recorded on a real model: an empty panel neither helps nor hurts."""
    miniatures = gains()
    miniatures = miniatures[miniatures.model == "mixtral-mini"].copy()
    assert systems_claim("F10", "Fig. 10", miniatures).verdict == "holds"
    miniatures.loc[miniatures.index[:2], ["gain", "low"]] = -0.1  # two of four in TTFT
    claim = systems_claim("F10", "Fig. 10", miniatures)
    assert (claim.verdict, claim.panel) == ("does not hold", "miniatures only")
    assert claim.reproduced.startswith("decided by TTFT below a baseline's: 2 of 4 (miniatures); ")


def test_the_floor_ends_the_reasons():
    assert systems_claim("F10", "Fig. 10", gains(), "The floor.").why.endswith(" The floor.")


def on_both_testbeds(**of_models: tuple[float, float]) -> list[dict]:
    """TPOT gains over two baselines on the A100; on the six RTX 3090 they are 0.5 and 0.6."""
    return [
        {"model": model.replace("_", "-"), "dataset": "d", "quantity": "tpot_s", "baseline": baseline, "gain": gain}
        | {"low": gain - 0.01, "gain_paper_testbed": before}
        for model, found in of_models.items()
        for baseline, gain, before in zip(("MoE-Infinity", "ProMoE"), found, (0.5, 0.6), strict=True)
    ]


def test_gains_on_the_a100_are_compared_panel_by_panel():
    """A mean over miniatures and real routing would hide that one of them contradicts."""
    rows = on_both_testbeds(mixtral_mini=(0.4, 0.5), gpt_oss_20b=(0.3, -0.3))
    claim = high_end_claim(pd.DataFrame(rows))
    assert claim.verdict == "does not hold"
    assert "miniatures: TPOT against MoE-Infinity -40%" in claim.reproduced
    assert "gpt-oss-20b: TPOT against MoE-Infinity -30%" in claim.reproduced
    agreeing = [row | {"gain": row["gain_paper_testbed"] - 0.1, "low": 0.1} for row in rows]
    assert high_end_claim(pd.DataFrame(agreeing)).verdict == "holds"
    losing = [row | {"gain_paper_testbed": -0.1, "gain": -0.2} if row["model"] == "gpt-oss-20b" else row for row in rows]
    lost = high_end_claim(pd.DataFrame(losing))  # a loss that grows is no gain that shrinks
    assert lost.reproduced.startswith("decided by a mean gain, smaller than on the six RTX 3090: 0 of 2 (gpt-oss-20b)")


def test_what_is_no_gain_on_the_papers_testbed_cannot_be_a_smaller_one():
    rows = on_both_testbeds(mixtral_mini=(0.4, 0.7), gpt_oss_20b=(-0.6, -0.7))
    there = {"MoE-Infinity": -0.5, "ProMoE": -0.4}
    rows = [row | {"gain_paper_testbed": there[row["baseline"]]} if row["model"] == "gpt-oss-20b" else row for row in rows]
    tests = high_end_tests(pd.DataFrame(rows))
    assert tests.is_smaller.to_dict() == {
        ("miniatures", "tpot_s", "MoE-Infinity"): True,  # 0.4 < 0.5
        ("miniatures", "tpot_s", "ProMoE"): False,  # 0.7 > 0.6
        ("gpt-oss-20b", "tpot_s", "MoE-Infinity"): False,
        ("gpt-oss-20b", "tpot_s", "ProMoE"): False,
    }
    assert tests.is_same_order.groupby("panel", sort=False).first().tolist() == [True, False]


def test_a_gain_of_the_same_size_is_not_smaller():
    claim = high_end_claim(pd.DataFrame(on_both_testbeds(mixtral_mini=(0.5, 0.6))))
    assert claim.reproduced.startswith("decided by a mean gain, smaller than on the six RTX 3090: 0 of 2 (miniatures)")


def test_another_order_of_the_baselines_is_not_the_same():
    claim = high_end_claim(pd.DataFrame(on_both_testbeds(mixtral_mini=(0.4, 0.3))))
    assert claim.reproduced.startswith("decided by the baselines in the same order: 0 of 1 (miniatures)")


def test_figure_10_is_the_shipped_claim():
    means, real = figure_table("f10"), OF_FIGURE["f10"]
    floor = against_on_demand(shipped_requests(means, real))
    assert outcome(systems_claim("F10", "Fig. 10", shipped_gains(means, real), floor)) == shipped_claim("F10")


def test_figure_13_is_the_shipped_claim():
    here, there = (shipped_gains(figure_table(stem), real) for stem, real in reversed(OF_FIGURE.items()))
    both = here.merge(there, on=["model", "dataset", "quantity", "baseline"], suffixes=("", "_paper_testbed"))
    floor = against_on_demand(shipped_requests(figure_table("f13"), OF_FIGURE["f13"]))
    assert outcome(high_end_claim(both, floor)) == shipped_claim("F13")
