"""The claim on online serving (Fig. 11), on made-up requests and on the shipped table."""

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.analysis.latency import BASELINES
from finemoe.artifact.verdicts.online import online_claim, online_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim

SPREAD = np.linspace(1.0, 3.0, 21)  # s


def served(ours: np.ndarray = SPREAD, theirs: np.ndarray = 2 * SPREAD, **changed: np.ndarray) -> pd.DataFrame:
    """Requests of one model: FineMoE's times, the baselines', and those of the baselines named (`_` for `-`)."""
    seconds = {"FineMoE": ours} | dict.fromkeys(BASELINES, theirs) | {name.replace("_", "-"): s for name, s in changed.items()}
    tables = [
        pd.DataFrame({"system": name, "request": range(len(s)), "service_s": s, "latency_s": 3 * s})
        for name, s in seconds.items()
    ]
    return pd.concat(tables).assign(model="mixtral-mini")


def test_left_of_all_holds():
    tests = online_tests(served())
    assert tests.baseline.tolist() == list(BASELINES)
    assert tests.gain.tolist() == pytest.approx([0.5] * 4)
    claim = online_claim(tests, num_requests=21)
    assert claim.verdict == "holds"
    assert "In 4 of 4 comparisons" in claim.why
    assert "21 requests were served" in claim.why


def test_one_decile_at_which_it_is_not_lower_counts():
    """The shortest requests take longer than the baseline's, whose mean is higher."""
    late = np.maximum(SPREAD, 1.6)
    tests = online_tests(served(late, ProMoE=2 * SPREAD - 0.9)).set_index("baseline")
    is_lower = [np.quantile(late, tenth / 10) < np.quantile(2 * SPREAD - 0.9, tenth / 10) for tenth in range(1, 10)]
    assert is_lower == [False] + [True] * 8
    assert not tests.is_left["ProMoE"]
    assert tests.is_shorter["ProMoE"]
    claim = online_claim(tests.reset_index(), num_requests=21)
    assert claim.verdict == "holds weaker"
    assert "Not left of: ProMoE on mixtral-mini (" in claim.why


def test_equal_is_not_left():
    tests = online_tests(served(theirs=SPREAD))
    assert not tests.is_left.any()
    assert not tests.is_shorter.any()
    assert online_claim(tests, num_requests=21).verdict == "does not hold"


def test_half_of_the_baselines_is_not_most():
    slower = dict.fromkeys(("ProMoE", "MoE_Infinity"), SPREAD / 2)
    claim = online_claim(online_tests(served(**slower)), num_requests=21)
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by latency lower than a baseline's at every decile: 2 of 4 (miniatures); ")


def test_figure_11_is_the_shipped_claim():
    requests = figure_table("f11")
    assert outcome(online_claim(online_tests(requests), requests.request.nunique())) == shipped_claim("F11")
