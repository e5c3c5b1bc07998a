"""Systems beside each other over a paced link: every one of them serves the same requests with the same tokens."""

import itertools

import pytest

from finemoe.artifact.pipeline import paced_systems
from finemoe.artifact.pipeline.paced_systems import SYSTEMS, measured_round
from finemoe.artifact.pipeline.serving import Served
from finemoe.errors import FinemoeError
from finemoe.paths import DATA
from finemoe.traces import RoutingTrace

PROMPTS = ["What is a cache?", "Why do experts wait?"]


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return RoutingTrace.load(DATA / "traces" / "qwen-mini-40x32.trace")


@pytest.mark.timeout(300)
def test_every_system_serves_the_same_requests(trace):
    rows = measured_round("qwen-mini", trace, PROMPTS, num_tokens=2, expert_memory=0.25, load_s=1e-4)
    assert [(row["system"], row["request"]) for row in rows] == list(itertools.product(SYSTEMS, range(2)))
    assert len({row["accesses"] for row in rows}) == 2  # of two prompts, whoever serves them
    for row in rows:
        assert row["hits"] + row["late"] + row["misses"] == row["accesses"]
        assert row["tpot_s"] > 0
    assert all(row["prefetched_bytes"] == 0 for row in rows if row["system"] == "on-demand")


def test_other_tokens_are_refused(trace, monkeypatch):
    served = iter(range(100))
    monkeypatch.setattr(paced_systems, "serve", lambda *_: [Served((next(served),), 0.1, {})])
    with pytest.raises(FinemoeError, match="qwen-mini under on-demand: tokens differ"):
        measured_round("qwen-mini", trace, PROMPTS, num_tokens=2, expert_memory=0.25, load_s=1e-4)
