"""Streamed prompts in virtual time: with loads that take no time they have the counts of an instant link."""

from dataclasses import replace

import pytest

import finemoe
from finemoe.paths import DATA
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

TRACE = RoutingTrace.load(DATA / "traces" / "qwen-mini-40x32.trace").split("served").select(range(4))
FREE = {"link_bytes_per_s": 1e21, "host_bytes_per_s": 1e22, "link_latency_s": 0.0, "chunk_overhead_s": 0.0}


@pytest.mark.parametrize("policy", ["on-demand", "finemoe"])
@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("devices", [1, 3])
def test_a_free_link_is_an_instant_one(policy, share, devices):
    """Of policies that predict nothing in streamed iterations: a forecast may come at the moment at which the queue is loaded."""
    told = {"stream_prompts_from": 2, "devices": devices}
    testbed = replace(Testbed.load("rtx3090"), **FREE, memory_bytes=1e13, search_bytes_per_s=1e21, search_overhead_s=0.0)
    timed = finemoe.replay(TRACE, policy, share, testbed, **told)
    instant = finemoe.replay(TRACE, policy, share, **told)
    assert (timed.layer_hits, timed.layer_misses, timed.late) == (instant.layer_hits, instant.layer_misses, 0)
    assert timed.layer_hits != finemoe.replay(TRACE, policy, share, devices=devices).layer_hits


def test_what_is_longer_than_every_prompt_changes_nothing():
    plain, never = (finemoe.replay(TRACE, "finemoe", 0.25, "rtx3090", stream_prompts_from=rows) for rows in (None, 10**6))
    assert plain == never
