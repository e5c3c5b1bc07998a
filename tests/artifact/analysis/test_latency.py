"""Tables of requests in virtual time: means, paired gains, and what is left out."""

import numpy as np
import pandas as pd
import pytest

import finemoe
from finemoe.artifact.analysis.arrivals import azure_like
from finemoe.artifact.analysis.footprint import footprint_table
from finemoe.artifact.analysis.latency import (
    BASELINES,
    LATENCY_SYSTEMS,
    OURS,
    PAPER_SYSTEMS,
    SHOWN_SYSTEMS,
    distance_table,
    latency_table,
    means,
    reduction,
    systems_on_testbed,
)
from finemoe.artifact.analysis.online import online_summary, online_table
from finemoe.errors import FinemoeError
from finemoe.simulation.cost import CostModel, size_named
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.simulation.testbed import FOLDER
from finemoe.simulation.testbed import Testbed as Machine
from finemoe.traces import RoutingTrace
from tests.artifact.tables import requests
from tests.simulation.golden import FILE
from tests.simulation.test_hardware import SIZE

TRACE = RoutingTrace.load(FILE)
HISTORY, SERVED = TRACE.split("history"), TRACE.split("served")


@pytest.fixture
def toy(monkeypatch):
    """Replays of the golden trace mean a toy model."""
    for module in ("finemoe.simulation.replay", "finemoe.artifact.analysis.latency"):
        monkeypatch.setattr(f"{module}.size_of", lambda *_: SIZE)


@pytest.mark.usefixtures("toy")
def test_a_table_is_the_reports_request_by_request():
    table = latency_table(HISTORY, SERVED, SHOWN_SYSTEMS, "rtx3090", [0.25, 0.5], prefetch_distance=1)
    assert set(table.system) == set(SHOWN_SYSTEMS)
    for (name, memory), part in table.groupby(["system", "expert_memory"], sort=False):
        policy = SHOWN_SYSTEMS[name].policy
        report = finemoe.replay(SERVED, policy, memory, hardware="rtx3090", history=HISTORY, prefetch_distance=1)
        assert part.tpot_s.tolist() == [one.tpot_s for one in report.requests]
        assert part.hits.sum() == report.hits


def test_what_is_not_in_the_paper_is_neither_its_system_nor_a_baseline():
    assert list(OURS) == ["finemoe-plus"]
    assert not set(OURS) & {*PAPER_SYSTEMS, *BASELINES, *LATENCY_SYSTEMS}
    assert set(SHOWN_SYSTEMS) == {*LATENCY_SYSTEMS, *OURS}


@pytest.mark.usefixtures("toy")
def test_limits_in_gb_are_over_all_devices():
    table = systems_on_testbed(HISTORY, SERVED, "6x-rtx3090", [0.5], [0.024], prefetch_distance=1)
    limited = table[table.cache_limit_gb.notna()]
    assert set(table.testbed) == {"6x-rtx3090"}
    assert set(limited.system) == set(SHOWN_SYSTEMS)
    assert limited.expert_memory.isna().all()
    same = finemoe.replay(SERVED, "on-demand", "4000000B", hardware="6x-rtx3090", history=HISTORY)  # two experts of 2 MB each
    assert limited[limited.system == "on-demand (LRU)"].tpot_s.tolist() == [one.tpot_s for one in same.requests]


@pytest.mark.usefixtures("toy")
def test_what_does_not_fit_is_left_out(monkeypatch):
    small = Machine.load("rtx3090").__class__(**{**Machine.load("rtx3090").__dict__, "memory_bytes": SIZE.total_bytes * 0.7})
    monkeypatch.setattr("finemoe.simulation.testbed.Testbed.load", classmethod(lambda *_: small))
    table = latency_table(HISTORY, SERVED, LATENCY_SYSTEMS, "rtx3090", [0.25, 0.9], prefetch_distance=1)
    assert set(table.expert_memory) == {0.25}
    assert "No-offload" not in set(table.system)


@pytest.mark.usefixtures("toy")
def test_distances_are_served_one_by_one():
    table = distance_table(HISTORY, SERVED, "rtx3090", 0.25, [1, 3])
    expected = finemoe.replay(SERVED, "finemoe", 0.25, hardware="rtx3090", history=HISTORY, prefetch_distance=3)
    found = table[(table.system == "FineMoE") & (table.prefetch_distance == 3)]
    assert found.tpot_s.tolist() == [one.tpot_s for one in expected.requests]


def test_means_weigh_requests_by_their_steps():
    table = requests(FineMoE=[0.1, 0.2, 0.3])
    found = means(table, ["system"]).iloc[0]
    assert found.tpot_s == pytest.approx((0.1 * 10 + 0.2 * 11 + 0.3 * 12) / 33)
    assert found.tpot_s_low < found.tpot_s < found.tpot_s_high
    assert found.ttft_s == pytest.approx(0.4)
    assert found.hit_rate == 0.5


def test_a_reduction_is_paired_over_requests():
    """Half as long in every request: no interval, although the requests differ."""
    slow, fast = requests(a=[1.0, 2.0, 9.0]), requests(b=[0.5, 1.0, 4.5])
    gain = reduction(slow, fast, "tpot_s")
    assert gain.value == pytest.approx(0.5)
    assert (gain.low, gain.high) == pytest.approx((0.5, 0.5))


@pytest.mark.usefixtures("toy")
def test_a_machine_without_room_is_named(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        (FOLDER / "rtx3090.yaml").read_text().replace("memory_bytes: {value: 24.0e+9", "memory_bytes: {value: 24.0e+6")
    )
    systems = {"FineMoE": LATENCY_SYSTEMS["FineMoE"]}
    with pytest.raises(FinemoeError, match=r"toy fits on .* at none of the sizes 0\.9; add smaller ones"):
        latency_table(HISTORY, SERVED, systems, str(path), [0.9], prefetch_distance=1)


def test_memory_in_parts_adds_up():
    cells = pd.DataFrame({"model": "mixtral-mini", "system": ["FineMoE", "No-offload", "MoE-Infinity"], "expert_memory": 0.25})
    table = footprint_table(cells, "6x-rtx3090", store_capacity=1000, context_tokens=100)
    size = size_named("mixtral-mini")
    assert table.experts_gb[1] == pytest.approx(size.all_experts_bytes / 1e9)
    assert table.experts_gb[0] == pytest.approx(CostModel(size, Machine.load("6x-rtx3090")).cache_bytes(0.25) / 1e9)
    assert table.memory_of_past_gb[2] == pytest.approx(120 * 32 * 8 * 8 / 1e9)
    parts = table[["experts_gb", "other_weights_gb", "kv_cache_gb", "memory_of_past_gb"]].sum(axis=1)
    np.testing.assert_allclose(table.total_gb, parts)


@pytest.mark.usefixtures("toy")
def test_online_latency_is_service_and_waiting():
    arrivals = azure_like(5, seed=2).assign(prompt_tokens=[3, 9, 4, 2, 6], new_tokens=[4, 2, 9, 3, 3])
    systems = {name: LATENCY_SYSTEMS[name] for name in ("FineMoE", "MoE-Infinity", "ProMoE", "Mixtral-Offloading")}
    table = online_table(TRACE, arrivals, systems, "rtx3090", 0.5, prefetch_distance=1, training=HISTORY)
    assert len(table) == 20
    np.testing.assert_allclose(table.latency_s, table.service_s + table.waiting_s)
    np.testing.assert_allclose(table.service_s, table.ttft_s + table.tpot_s * table.num_decode_steps)
    first = table[table.system == "FineMoE"]
    ends = (first.arrival_s + first.latency_s).to_numpy()
    assert (np.diff(ends) > 0).all()  # one at a time
    assert set(online_summary(table.assign(model="m")).system) == set(systems)


def test_synthetic_models_have_a_published_size():
    trace = synthetic_trace(Recipe(0.2, 0.2, 0.5, 8), 94, 128, 8, 2, 2)
    report = finemoe.replay(trace, "on-demand", 0.25, hardware="h200", model="qwen3-235b-a22b", devices=4)
    assert report.tpot_s > 0
