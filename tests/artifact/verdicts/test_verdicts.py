"""Verdicts on the claims about latency: what each statement counts as, on tables made up for it."""

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.verdicts.distance import distance_claim, distance_minima
from finemoe.artifact.verdicts.gains import REPORTED_GAINS, against_on_demand, gains_table
from finemoe.artifact.verdicts.headline import headline_claim
from finemoe.artifact.verdicts.memory import cache_limit_claim, footprint_claim
from finemoe.artifact.verdicts.systems import high_end_claim, systems_claim
from tests.artifact.tables import requests


def test_gains_of_what_was_not_recorded_have_no_row():
    table = requests(FineMoE=[0.1] * 3, ProMoE=[0.2] * 3).assign(ttft_s=np.nan, model="gpt-oss-20b", dataset="mixed")
    gains = gains_table(table)
    assert set(zip(gains.quantity, gains.baseline, strict=True)) == {("tpot_s", "ProMoE"), ("hit_rate", "ProMoE")}


def gains(**changed: float) -> pd.DataFrame:
    """Every gain 0.5, but for the baselines named on real routing."""
    rows = [
        {"model": model, "dataset": "d", "quantity": quantity, "baseline": baseline, "gain": value, "low": value - 0.01}
        | {"high": value + 0.01, "reported": 0.5}
        for model in ("mixtral-mini", "gpt-oss-20b")
        for quantity, reported in REPORTED_GAINS.items()
        for baseline in reported
        for value in [changed.get(baseline, 0.5) if model == "gpt-oss-20b" else 0.5]
    ]
    return pd.DataFrame(rows)


def test_verdicts_of_the_systems():
    assert systems_claim("F10", "Fig. 10", gains()).verdict == "holds"
    behind_one = systems_claim("F10", "Fig. 10", gains(ProMoE=-0.1))
    assert behind_one.verdict == "holds weaker"
    assert behind_one.reproduced.startswith("decided by hit rate above a baseline's: 2 of 3 (gpt-oss-20b); miniatures: ")
    assert "ProMoE in hit rate on gpt-oss-20b" in behind_one.why
    behind_two = {"ProMoE": -0.1, "DeepSpeed-Inference": -0.1}  # of the four in latency, on real routing alone
    assert systems_claim("F10", "Fig. 10", gains(**behind_two)).verdict == "does not hold"


def test_verdicts_of_the_headline():
    assert headline_claim(gains()).verdict == "holds"
    short = headline_claim(gains(ProMoE=0.1))  # by two of eight cuts on one of two panels
    assert (short.verdict, short.reproduced.split(";")[0]) == (
        "does not hold",
        "decided by latency better by 47% at least: 0 of 1 (gpt-oss-20b)",
    )


def test_without_real_routing_no_verdict_leans_on_it():
    """None recorded on a real model: an empty panel neither helps nor hurts."""
    miniatures = gains()
    miniatures = miniatures[miniatures.model == "mixtral-mini"].copy()
    assert systems_claim("F10", "Fig. 10", miniatures).verdict == "holds"
    miniatures.loc[miniatures.index[:2], ["gain", "low"]] = -0.1  # two of four in TTFT
    claim = systems_claim("F10", "Fig. 10", miniatures)
    assert (claim.verdict, claim.panel) == ("does not hold", "miniatures only")
    assert claim.reproduced.startswith("decided by TTFT below a baseline's: 2 of 4 (miniatures); ")


def test_cache_limits_are_those_that_every_model_has():
    tpot = gains().query("quantity == 'tpot_s'")
    limits = [tpot.assign(cache_limit_gb=limit) for limit in (6, 48)] + [
        tpot[tpot.model == "gpt-oss-20b"].assign(cache_limit_gb=96)
    ]
    claim = cache_limit_claim(pd.concat(limits))
    assert "at 6 GB" in claim.reproduced
    assert "At 48 GB" in claim.why


def test_a_minimum_must_lie_inside():
    table = pd.concat(
        [
            requests(FineMoE=values).assign(model="mixtral-mini", dataset="d", prefetch_distance=distance)
            for distance, values in {1: [3.0] * 3, 3: [1.0] * 3, 8: [2.0] * 3}.items()
        ]
    )
    minima = distance_minima(table)
    assert minima.best_distance.tolist() == [3]
    assert minima.is_inside.tolist() == [True]
    falling = table.assign(tpot_s=1.0 / table.prefetch_distance)
    assert distance_minima(falling).is_inside.tolist() == [False]
    assert distance_claim(distance_minima(falling)).verdict == "does not hold"


@pytest.mark.parametrize(
    ("ttft_s", "best", "verdict"),
    [
        ({1: 3.0, 3: 1.0, 8: 2.0}, 3, "holds"),
        ({1: 3.0, 3: 2.0, 8: 1.0}, 8, "does not hold"),
        ({1: 1.0, 3: 2.0, 8: 3.0}, 1, "does not hold"),
    ],
)
def test_ttft_must_have_its_minimum_inside_too(ttft_s, best, verdict):
    """Real routing tells TPOT alone; its minimum does not make up for a TTFT that has none on the miniatures."""
    one = pd.concat(
        [
            requests(FineMoE=values).assign(dataset="d", prefetch_distance=distance, ttft_s=ttft_s[distance])
            for distance, values in {1: [3.0] * 3, 3: [1.0] * 3, 8: [2.0] * 3}.items()
        ]
    )
    both = pd.concat([one.assign(model="mixtral-mini"), one.assign(model="gpt-oss-20b", ttft_s=np.nan)])
    minima = distance_minima(both).set_index("model")
    assert minima.best_ttft_distance["mixtral-mini"] == best
    assert np.isnan(minima.best_ttft_distance["gpt-oss-20b"])
    assert distance_claim(minima.reset_index()).verdict == verdict


def test_gains_on_the_a100_are_compared_panel_by_panel():
    """A mean over miniatures and real routing would hide that one of them contradicts."""
    rows = [
        {"model": model, "dataset": "d", "quantity": "tpot_s", "baseline": baseline, "gain": gain, "low": gain - 0.01}
        | {"gain_paper_testbed": before}
        for model, gains in {"mixtral-mini": (0.4, 0.5), "gpt-oss-20b": (0.3, -0.3)}.items()
        for baseline, gain, before in zip(("MoE-Infinity", "ProMoE"), gains, (0.5, 0.6), strict=True)
    ]
    claim = high_end_claim(pd.DataFrame(rows))
    assert claim.verdict == "does not hold"
    assert "miniatures: TPOT against MoE-Infinity -40%" in claim.reproduced
    assert "gpt-oss-20b: TPOT against MoE-Infinity -30%" in claim.reproduced
    agreeing = [row | {"gain": row["gain_paper_testbed"] - 0.1, "low": 0.1} for row in rows]
    assert high_end_claim(pd.DataFrame(agreeing)).verdict == "holds"
    losing = [row | {"gain_paper_testbed": -0.1, "gain": -0.2} if row["model"] == "gpt-oss-20b" else row for row in rows]
    lost = high_end_claim(pd.DataFrame(losing))  # a loss that grows is no gain that shrinks
    assert lost.reproduced.startswith("decided by a mean gain, smaller than on the six RTX 3090: 0 of 2 (gpt-oss-20b)")


def test_low_on_both_axes_is_three_statements():
    """Fastest everywhere and small everywhere, but far slower than No-offload in most panels: that is no low latency."""
    names = ("DeepSpeed-Inference", "ProMoE", "on-demand (LRU)")
    panels = [
        requests(FineMoE=[0.1] * 3, **dict.fromkeys(names, [0.2] * 3)).assign(model="mixtral-mini", dataset=dataset)
        for dataset in ("a", "b", "c")
    ]
    table = pd.concat(panels).replace({"system": {"on_demand": "on-demand (LRU)"}})
    rows = [
        {"model": "mixtral-mini", "dataset": dataset, "system": system, "total_gb": total_gb, "tpot_s": tpot_s}
        for dataset, slowdown in (("a", 1.5), ("b", 7.4), ("c", 7.4))
        for system, total_gb, tpot_s in (("FineMoE", 28, slowdown), ("No-offload", 100, 1))
    ]
    claim = footprint_claim(table, pd.DataFrame(rows))
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by less than twice No-offload's TPOT: 1 of 3 (miniatures); ")


def test_the_floor_is_loading_on_demand():
    table = requests(FineMoE=[0.1] * 3, on_demand=[0.2] * 3).assign(model="gpt-oss-20b", dataset="mixed")
    assert against_on_demand(table).endswith("FineMoE's TPOT is -50% on gpt-oss-20b.")
    text = against_on_demand(table)
    assert systems_claim("F10", "Fig. 10", gains(), text).why.endswith(text)
