"""What the claim on latency and memory (Fig. 1b) counts as true, panel by panel, and the claim of the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.footprint import footprint_claim, footprint_tests
from tests.artifact.tables import requests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim

OTHERS = ("DeepSpeed-Inference", "Mixtral-Offloading", "ProMoE", "MoE-Infinity", "on-demand (LRU)")


def served(**tpot_s: float) -> pd.DataFrame:
    """Three requests of every system in two panels: 0.1 s for FineMoE, 0.2 s for the others, and in the second as named."""
    tables = []
    for dataset, changed in (("a", {}), ("b", tpot_s)):
        seconds = {"FineMoE": 0.1} | dict.fromkeys(OTHERS, 0.2) | changed
        part = requests(**{name: [value, 1.1 * value, 0.9 * value] for name, value in seconds.items()})
        tables.append(part.assign(model="mixtral-mini", dataset=dataset))
    return pd.concat(tables, ignore_index=True)


def summary(memory: float = 0.3, slowdown: float = 1.5) -> pd.DataFrame:
    """FineMoE and No-offload in two panels; in the second, FineMoE with this share of its memory and multiple of its TPOT."""
    rows = [
        {"model": "mixtral-mini", "dataset": dataset, "system": system, "total_gb": total_gb, "tpot_s": tpot_s}
        for dataset, share, times in (("a", 0.3, 1.5), ("b", memory, slowdown))
        for system, total_gb, tpot_s in (("No-offload", 80.0, 0.02), ("FineMoE", 80 * share, 0.02 * times))
    ]
    return pd.DataFrame(rows)


def test_fastest_small_and_quick_holds():
    tests = footprint_tests(served(), summary())
    assert tests.is_fastest.tolist() == [True, True]
    assert tests.memory.tolist() == pytest.approx([0.3, 0.3])
    assert tests.slowdown.tolist() == pytest.approx([1.5, 1.5])
    assert footprint_claim(served(), summary()).verdict == "holds"


@pytest.mark.parametrize("faster", OTHERS)
def test_a_faster_baseline_or_on_demand_is_an_exception(faster):
    table = served(**{faster: 0.05})
    assert footprint_tests(table, summary()).is_fastest.tolist() == [True, False]
    claim = footprint_claim(table, summary())
    assert claim.verdict == "does not hold"  # in half of the panels
    assert claim.reproduced.startswith("decided by the fastest offloading system: 1 of 2 (miniatures); ")


def test_as_fast_as_a_baseline_is_not_the_fastest():
    assert footprint_tests(served(ProMoE=0.1), summary()).is_fastest.tolist() == [True, False]


@pytest.mark.parametrize(
    ("memory", "slowdown", "decided"),
    [
        (0.49, 1.99, "the fastest offloading system: 2 of 2"),
        (0.5, 1.5, "less than half of No-offload's memory: 1 of 2"),
        (0.3, 2.0, "less than twice No-offload's TPOT: 1 of 2"),
    ],
)
def test_half_and_twice_are_too_much(memory, slowdown, decided):
    claim = footprint_claim(served(), summary(memory, slowdown))
    assert claim.reproduced.startswith(f"decided by {decided} (miniatures); ")
    assert claim.verdict == ("holds" if decided.endswith("2 of 2") else "does not hold")


def test_figure_1b_is_the_shipped_claim():
    """Its table has means, no requests: every mean stands for two equal ones, whose paired intervals have no width."""
    means = figure_table("f1b")
    means = means[means.expert_memory == 0.25]
    equal = means.assign(num_decode_steps=1, hits=means.hit_rate, accesses=1.0)
    claim = footprint_claim(pd.concat([equal, equal], ignore_index=True), means)
    assert outcome(claim) == shipped_claim("F1b")
