"""The whole measurement on pools of host memory: the same code and the same tables as on a GPU."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import finemoe
from finemoe.analysis.measured import measured_figure, summary_table, targets_table, tpot_on_gpu
from finemoe.errors import FinemoeError
from finemoe.gpu_bench.plan import measure
from finemoe.gpu_bench.settings import settings_for, target_of
from finemoe.gpu_bench.systems import requests_of
from finemoe.measured import TABLES, Measured, gpus_first, read_table, write_table
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

SETTINGS = replace(
    settings_for(is_cuda=False, quick=True),
    models=("qwen-mini",),
    checked_models=("phi-mini",),
    policies=("finemoe", "on-demand", "mixtral-offloading"),
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "here"
    outcome = measure(SETTINGS, folder, None, print)
    assert not outcome.failed
    assert {one.part for one in outcome.skipped} == {"compute-sanitizer", "qwen-mini"}
    return Measured.load(folder)


def test_every_table_is_there_and_as_the_schema_says(machine):
    assert set(machine.tables) == set(TABLES)
    assert all(len(table) for table in machine.tables.values())
    assert not machine.is_gpu
    assert "pools of memory" in machine.title
    assert (machine.folder / "timeline-qwen-mini.json").stat().st_size > 1000


def test_delays_change_no_bit(machine):
    correctness = machine.tables["correctness"]
    assert set(correctness.policy) == {*SETTINGS.policies, "no-offload"}
    assert correctness.num_steps.max() == SETTINGS.steps
    assert (correctness.num_different_steps == 0).all()


def test_demands_are_those_of_a_replay_of_the_recorded_requests(machine):
    """On demand nothing depends on time: counts equal the accounting executor's, request by request."""
    (path,) = (machine.folder / "traces").glob("*.trace")
    served = requests_of(RoutingTrace.load(path).split("served"), "on-demand", SETTINGS)
    requests = machine.tables["requests"]
    for share in SETTINGS.expert_memories:
        report = finemoe.replay(served, "on-demand", share)
        live = requests[(requests.policy == "on-demand") & (requests.expert_memory == share)]
        counts = [(one.accesses, one.hits, one.misses) for one in report.requests[1:]]
        assert list(live[["accesses", "hits", "misses"]].itertuples(index=False, name=None)) == counts
        steps = [one.num_decode_steps for one in report.requests[1:]]
        assert live.num_decode_steps.tolist() == steps


def test_the_engine_gives_eagers_logits_with_everything_resident(machine):
    overhead = machine.tables["overhead"]
    assert overhead[overhead.variant != "grouped_mm"].is_equal.all()
    assert (overhead.groupby("variant").size() >= SETTINGS.num_rounds).all()


def test_a_second_call_measures_nothing_again(machine):
    (path,) = machine.folder.glob("parts-*.json")
    before = path.read_bytes()
    said: list[str] = []
    measure(SETTINGS, machine.folder, None, said.append)
    assert path.read_bytes() == before
    assert [line.split("] ")[-1].split(":")[0] for line in said] == ["device timeline"] * 2 + ["correctness"] * 2


def test_figures_draw_from_the_tables(machine):
    table = summary_table(machine)
    assert len(table) == len(SETTINGS.policies) * len(SETTINGS.expert_memories)
    assert table.hit_rate.between(0, 1).all()
    assert len(measured_figure(machine).axes) == 4
    assert len(measured_figure(None).axes) == 1


def test_only_a_gpu_fills_the_measured_panel(machine):
    assert tpot_on_gpu([machine], 0.25).empty
    gpu = replace(machine, facts=machine.facts | {"title": "a GPU", "devices": [{"name": "a GPU", "memory_bytes": 1}]})
    drawn = tpot_on_gpu(gpus_first([machine, gpu]), 0.25)
    assert {"FineMoE", "on-demand (LRU)", "accelerate"} <= set(drawn.system)
    assert (drawn.machine == "a GPU").all()


def test_targets_are_judged_by_their_definitions(machine):
    found = targets_table(machine).set_index("target")
    overhead = machine.tables["overhead"].groupby("variant").seconds_per_token.median()
    assert found.reached["overhead over eager, all experts resident"] == pytest.approx(overhead.finemoe / overhead.eager - 1)
    requests, baselines = machine.tables["requests"], machine.tables["baselines"]
    ours = requests[(requests.policy == "finemoe") & (requests.expert_memory == SETTINGS.baseline_memory)].tpot_s.mean()
    assert found.reached["times faster per token than accelerate"] == pytest.approx(baselines.tpot_s.mean() / ours)


def test_the_calibrated_testbed_is_one_that_replay_reads(machine):
    testbed = Testbed.load(machine.folder / "testbed-qwen-mini.yaml")
    assert testbed.devices == 1
    copies = machine.tables["copies"]
    assert testbed.link_bytes_per_s == pytest.approx(copies[copies["mode"] == "queued"].bytes_per_s.max(), rel=1e-5)


def test_a_table_of_another_shape_is_refused(tmp_path, machine):
    write_table([], "copies", tmp_path)
    assert read_table("copies", tmp_path).empty
    with pytest.raises(FinemoeError, match=r"kernels\.csv: not measured; run"):
        read_table("kernels", tmp_path)
    (tmp_path / "copies.csv").write_text("mode,bytes\nqueued,3\n")
    with pytest.raises(FinemoeError, match="has the columns mode, bytes; expected mode, transfer_bytes"):
        read_table("copies", tmp_path)
    wrong = machine.tables["copies"].assign(chunk_bytes="many")
    wrong.to_csv(tmp_path / "copies.csv", index=False)
    with pytest.raises(FinemoeError, match="column chunk_bytes holds something else than int"):
        read_table("copies", tmp_path)


def test_names_of_models():
    assert target_of("qwen1.5-moe-a2.7b").recorded_from == "qwen-mini"
    assert target_of("owner/name").recorded_from is None
    with pytest.raises(FinemoeError, match="unknown model 'qwen'; known: mixtral-8x7b"):
        target_of("qwen")
    assert np.isclose(sum(settings_for(True).expert_memories), 2.625)
    assert pd.Series(settings_for(True).models).is_unique
