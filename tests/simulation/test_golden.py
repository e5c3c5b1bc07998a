"""Every system and every eviction rule on one small checked-in trace: literal counts, and a naive second implementation."""

from itertools import product

import pytest

import finemoe
from finemoe.cache import rules
from finemoe.policies import POLICIES
from finemoe.traces import RoutingTrace
from tests.simulation import naive
from tests.simulation.golden import FILE

SLOTS, DISTANCE = 9, 2
TRACE = RoutingTrace.load(FILE)
HISTORY, SERVED = TRACE.split("history"), TRACE.split("served")
# hits, misses, prefetched, evicted unused; in experts
SYSTEMS = {
    "deepspeed-inference": (106, 41, 265, 264),
    "finemoe": (69, 78, 104, 81),
    "finemoe-plus": (120, 27, 23, 11),
    "mixtral-offloading": (125, 22, 41, 21),
    "moe-infinity": (96, 51, 159, 123),
    "no-offload": (147, 0, 0, 0),
    "on-demand": (113, 34, 0, 0),
    "oracle": (147, 0, 28, 0),
    "promoe": (68, 79, 64, 58),
    "promoe speculative": (121, 26, 20, 10),
}
RULES = {
    "belady": (100, 47, 118, 95),
    "finemoe": (69, 78, 104, 81),
    "least-stale": (86, 61, 113, 97),
    "least-stale-interval": (72, 75, 119, 83),
    "lfru": (68, 79, 114, 98),
    "lfu": (96, 51, 120, 99),
    "lfu-aged": (95, 52, 119, 98),
    "lru": (59, 88, 108, 95),
    "next-use": (68, 79, 106, 97),
}


def counts(system: str, rule: str | None = None, slots: int = SLOTS) -> dict[str, int]:
    """What finemoe.replay counts, in experts."""
    name, *variant = system.split()
    options = {"predictor": variant[0]} if variant else {}
    report = finemoe.replay(
        SERVED, name, slots / 24, eviction=rule, history=HISTORY, prefetch_distance=DISTANCE, store_capacity=10**3, **options
    )
    assert report.demand_bytes == report.misses
    return {
        "hits": report.hits,
        "misses": report.misses,
        "ahead": report.prefetched_bytes,
        "useful": report.useful_bytes,
        "wasted": report.wasted_bytes,
        "unused": report.unused_resident_bytes,
    }


def test_the_counts_cover_every_system_and_rule():
    assert {name.split()[0] for name in SYSTEMS} == set(POLICIES)
    assert set(RULES) == set(rules.RULES) == set(naive.RULES)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_golden_counts_of_every_system(system):
    found = counts(system)
    assert (found["hits"], found["misses"], found["ahead"], found["wasted"]) == SYSTEMS[system]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_golden_counts_of_every_rule(rule):
    """Under finemoe's own prefetches, which reach every rule's handling of prefetched experts."""
    found = counts("finemoe", rule)
    assert (found["hits"], found["misses"], found["ahead"], found["wasted"]) == RULES[rule]


@pytest.mark.parametrize(("system", "rule"), list(product(naive.SYSTEMS, [None, *naive.RULES])))
def test_a_naive_implementation_agrees(system, rule):
    assert counts(system, rule) == naive.replay(SERVED, system, rule, SLOTS, HISTORY, DISTANCE)


@pytest.mark.parametrize("system", sorted(naive.SYSTEMS))
@pytest.mark.parametrize("slots", [6, 13, 24])
def test_it_agrees_at_other_sizes(system, slots):
    assert counts(system, slots=slots) == naive.replay(SERVED, system, None, slots, HISTORY, DISTANCE)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_byte_moved_ahead_is_classified(system):
    found = counts(system)
    assert found["ahead"] == found["useful"] + found["wasted"] + found["unused"]
