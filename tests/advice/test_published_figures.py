"""What others published of their own trace, met by advice on it (Helldez/BigMoeOnEdge, route-trace session of 2026-07-15)."""

import numpy as np
import pytest

from finemoe.advice.predictability import HINDSIGHT, LAST, PROMPT, simple_recalls
from finemoe.advice.sample import Sample
from finemoe.advice.usage import decoded, request_rows
from finemoe.importers.route_trace import load_route_trace, sample_path
from finemoe.simulation.curves import hit_curves

pytestmark = pytest.mark.skipif(not sample_path().is_file(), reason="the public route trace is not here")
MIB = 1 << 20


@pytest.fixture(scope="module")
def trace():
    return load_route_trace(sample_path())


def test_distinct_experts_of_a_layer(trace):
    """Published: mean 67, from 52 to 97, of the decoded tokens."""
    row = request_rows(decoded(trace))
    assert (round(row["mean"]), row["least"], row["greatest"]) == (67, 52, 97)


def test_recalls_of_the_token_before_and_of_the_hottest(trace):
    """Published: temporal 35.7 %, static 39.6 %, over the tokens that have one before them."""
    recalls = {row["predictor"]: round(100 * row["recall"], 1) for row in simple_recalls(Sample(trace, None, ()))}
    assert (recalls[LAST], recalls[HINDSIGHT]) == (35.7, 39.6)


def test_the_hottest_of_the_prompt(trace):
    """Published: 26.8 %. Ours is 27.2 %: of experts that a prompt uses equally often, ours takes the lower ids."""
    recalls = {row["predictor"]: row["recall"] for row in simple_recalls(Sample(trace, None, ()))}
    assert recalls[PROMPT] == pytest.approx(0.268, abs=0.005)


def test_the_hit_rate_of_a_cache_of_4000_mib(trace):
    """Published: 76.8 %, prompt included, measured on a phone under LRU; there a cache counts bytes, which differ by layer, and
    here slots of the mean size."""
    slots = int(4000 * MIB / np.mean(trace.expert_bytes))
    assert round(100 * float(hit_curves(trace, ["lru"], [slots])["lru"].hit_rates[0]), 1) == 76.8
