"""The comparison of systems: every row is a replay of its own, and its loads are all of the replay's bytes."""

from dataclasses import replace

import pytest

import finemoe
from finemoe.artifact.analysis.system_tables import ABLATION, EVICTIONS, eviction_systems, gain, system_table
from finemoe.cache.rules import RULES
from finemoe.errors import FinemoeError
from finemoe.simulation.comparison import system_reports
from finemoe.simulation.systems import SYSTEMS, chosen_systems, left_out
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE

TRACE = RoutingTrace.load(FILE)
HISTORY, SERVED = TRACE.split("history"), TRACE.split("served")
BARE = RoutingTrace.from_topk(
    SERVED.expert_ids, SERVED.expert_probs / SERVED.expert_probs.sum(axis=-1, keepdims=True), SERVED.offsets, 6
)


@pytest.mark.parametrize("systems", [SYSTEMS, ABLATION, eviction_systems(EVICTIONS)], ids=["systems", "ablation", "rules"])
def test_rows_are_replays(systems):
    table = system_table(HISTORY, SERVED, systems, [0.3, 0.6], prefetch_distance=2, store_capacity=40)
    assert list(table.system) == [name for name in systems for _ in range(2)]
    for row in table.itertuples():
        system = systems[row.system]
        options = {"history": HISTORY, "prefetch_distance": 2, "store_capacity": 40, **system.options}
        report = finemoe.replay(SERVED, system.policy, row.expert_memory, eviction=system.eviction, **options)
        assert (row.hit_rate, row.demand_loads) == (report.hit_rate, report.misses / report.accesses)
        ahead = row.useful_loads + row.wasted_loads + row.unused_loads
        assert ahead * report.accesses == pytest.approx(report.prefetched_bytes)
        assert row.low <= row.hit_rate <= row.high


def test_a_gain_is_paired_over_requests():
    """The difference of two hit rates; where every request gains alike, its interval is a point, however much they differ."""
    reports = system_reports(HISTORY, SERVED, SYSTEMS, [0.4], prefetch_distance=2, store_capacity=40)
    better, worse = reports["Mixtral-Offloading", 0.4], reports["on-demand (LRU)", 0.4]
    found = gain(better, worse)
    assert found.value == pytest.approx(better.hit_rate - worse.hit_rate)
    assert found.low <= found.value <= found.high
    alike = [replace(one, hits=one.hits + one.accesses // 10, accesses=one.accesses // 10 * 10) for one in worse.requests]
    fewer = [replace(one, accesses=one.accesses // 10 * 10) for one in worse.requests]
    found = gain(replace(better, requests=tuple(alike)), replace(worse, requests=tuple(fewer)))
    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_what_a_trace_cannot_serve_is_left_out_and_why():
    assert left_out(SERVED, SYSTEMS | ABLATION, 2) == {}
    reasons = left_out(BARE, SYSTEMS | ABLATION, 2)
    assert reasons == {
        "Mixtral-Offloading": "routers applied 1 ahead are not recorded",
        "ProMoE (speculative)": "routers applied 2 ahead are not recorded",
        "Speculate": "routers applied 2 ahead are not recorded",
        "Map (T+S)": "semantic embeddings are not recorded",
        "Map (T+S+δ)": "semantic embeddings are not recorded",
    }
    table = system_table(BARE, BARE, ABLATION, [0.5], prefetch_distance=2, store_capacity=40)
    assert list(table.system) == [name for name in ABLATION if name not in reasons]


def test_systems_are_chosen_by_name():
    assert list(chosen_systems(["FineMoE", "ProMoE"])) == ["FineMoE", "ProMoE"]
    with pytest.raises(FinemoeError, match=r"unknown system 'vLLM'; known: on-demand \(LRU\)"):
        chosen_systems(["vLLM"])
    assert set(EVICTIONS) == set(RULES)
