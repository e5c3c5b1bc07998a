"""The claim on eviction rules (Fig. 14b), on made-up hit rates and on the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.eviction import eviction_claim, eviction_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim

HITS = {"lru": 0.5, "lfu": 0.6, "finemoe": 0.7, "next-use": 0.65, "belady": 0.9}


def hit_rates(on_miniatures: dict[str, float] | None = None, on_real_routing: dict[str, float] | None = None) -> pd.DataFrame:
    """A miniature's panel and one of real routing, with intervals of ± 0.04; on demand everything hits less."""
    panels = {("mixtral-mini", "questions"): on_miniatures or {}, ("gpt-oss-20b", "mixed"): on_real_routing or {}}
    rows = [
        (model, dataset, rule, loading, share - less, share - less - 0.04, share - less + 0.04)
        for (model, dataset), changed in panels.items()
        for loading, less in (("prefetching", 0.0), ("on demand", 0.3))
        for rule, share in (HITS | changed).items()
    ]
    return pd.DataFrame(rows, columns=["model", "dataset", "rule", "loading", "hit_rate", "low", "high"])


def test_lru_below_lfu_below_finemoe_holds():
    tests = eviction_tests(hit_rates())
    assert tests.lfu_above_lru.all()
    assert tests.finemoe_above_lfu.all()
    assert tests.finemoe_minus_lfu.tolist() == pytest.approx([0.1, 0.1])
    claim = eviction_claim(tests)
    assert claim.verdict == "holds"
    assert "On real routing it is LRU 0.50, LFU 0.60, FineMoE 0.70" in claim.why


@pytest.mark.parametrize(("finemoe", "is_above"), [(0.681, True), (0.679, False), (0.5, False)])
def test_intervals_must_be_apart(finemoe, is_above):
    tests = eviction_tests(hit_rates(on_real_routing={"finemoe": finemoe})).xs("gpt-oss-20b")
    assert tests.finemoe_above_lfu.tolist() == [is_above]


def test_one_kind_of_routing_does_not_outvote_the_other():
    claim = eviction_claim(eviction_tests(hit_rates(on_real_routing={"lfu": 0.4})))
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by LFU above LRU: 0 of 1 (gpt-oss-20b); ")


def test_the_best_causal_rule_does_not_know_the_future():
    tests = eviction_tests(hit_rates(on_real_routing={"next-use": 0.8}))
    assert tests.best_causal.to_dict() == {("gpt-oss-20b", "mixed"): "next-use", ("mixtral-mini", "questions"): "finemoe"}
    assert "the best causal rule there is next-use (0.80), Belady 0.90." in eviction_claim(tests).why


def test_figure_14b_is_the_shipped_claim():
    assert outcome(eviction_claim(eviction_tests(figure_table("f14b")))) == shipped_claim("F14b")
