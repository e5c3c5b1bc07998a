"""Replay throughput in layer events per second on the public gpt-oss-20b trace (run with `make bench`, where the trace is)."""

import resource

import pytest

import finemoe
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.maps.store import ExpertMapStore
from finemoe.policies.finemoe import fill_store
from finemoe.traces import RoutingTrace

pytestmark = [
    pytest.mark.skipif(not sample_path().is_file(), reason="the public gpt-oss-20b trace is not here"),
    pytest.mark.timeout(900),  # a whole public trace
]


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return load_gpt_oss(sample_path())


def measure(benchmark, trace: RoutingTrace, **options) -> None:
    finemoe.replay(trace.select([0]), **options)  # compiled before it is timed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = benchmark.pedantic(finemoe.replay, (trace,), options, rounds=1)
    num_events = trace.num_rows * trace.num_layers
    benchmark.extra_info["layer_events_per_s"] = round(num_events / benchmark.stats.stats.min)
    benchmark.extra_info["hit_rate"] = round(report.hit_rate, 4)
    benchmark.extra_info["grown_megabytes"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)


@pytest.mark.parametrize("eviction", ["lru", "belady"])
def test_on_demand(benchmark, trace, eviction):
    measure(benchmark, trace, policy="on-demand", expert_memory=0.25, eviction=eviction)


def test_finemoe_with_its_search(benchmark, trace):
    """Served requests over a frozen store of C = 1,000 maps of the others."""
    store = ExpertMapStore(trace.num_layers, trace.num_experts, 0, 1000, 3)
    measure(
        benchmark, trace.split("served"), policy="finemoe", expert_memory=0.25, history=fill_store(store, trace.split("history"))
    )
