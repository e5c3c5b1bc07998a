"""The whole measurement on pools of host memory: the same code and the same tables as on a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import finemoe
from finemoe.analysis.measured import measured_figure, summary_table, targets_table, tpot_on_gpu
from finemoe.errors import FinemoeError
from finemoe.gpu_bench import plan
from finemoe.gpu_bench.bench import NotHere, Part
from finemoe.gpu_bench.plan import measure
from finemoe.gpu_bench.settings import settings_for, target_of
from finemoe.gpu_bench.subject import Subject
from finemoe.gpu_bench.subjects import size_of_target
from finemoe.gpu_bench.systems import requests_of
from finemoe.measured import (
    CHUNKED,
    PREFETCHED,
    QUEUED,
    TABLES,
    Correctness,
    Measured,
    Overhead,
    gpus_first,
    read_table,
    write_table,
)
from finemoe.runtime.layers import find_moe_layers
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace
from tests.runtime import families

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
    assert {one.part for one in outcome.skipped} == {"compute-sanitizer", "qwen-mini", "probe"}
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
    assert set(overhead.variant) == {"eager", "grouped_mm", "batched_mm", "on-demand", "finemoe"}
    assert overhead[~overhead.variant.isin(["grouped_mm", "batched_mm"])].is_equal.all()
    assert (overhead.groupby("variant").size() >= SETTINGS.num_rounds).all()


def test_a_second_call_measures_nothing_again(machine):
    said: list[str] = []
    measure(SETTINGS, machine.folder, None, said.append)
    _, second = sorted(machine.folder.glob("parts-*.json"))
    assert json.loads(second.read_text())["done"] == {}
    assert [line.split("] ")[-1].split(":")[0] for line in said[::2]] == ["mapped", "device-timeline", "correctness"]
    assert all("skipped" in line for line in said[1::2])


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
    assert testbed.link_bytes_per_s == pytest.approx(copies.bytes_per_s.max(), rel=1e-5)
    assert set(copies["mode"]) == {QUEUED, PREFETCHED, CHUNKED}
    assert (copies.groupby("main_thread").size() == len(copies) / 2).all()
    expert_bytes = size_of_target(target_of("qwen-mini")).expert_bytes
    assert set(copies.chunk_bytes) == {2 << 10, 8 << 10, expert_bytes}


def test_a_single_wrong_bit_is_a_failure_of_the_whole_measurement(tmp_path, monkeypatch):
    """As if one step under one policy, and the overhead's last logits, had differed; nothing else is measured again."""
    wrong = Correctness("phi-mini", "bfloat16", "finemoe", 0.25, 200, 1)
    off = Overhead("qwen-mini", "on-demand", 0, 0.1, False)
    other = Overhead("qwen-mini", "grouped_mm", 0, 0.1, False)  # Transformers' own, which may round differently
    part = Part("correctness", "phi-mini", 60.0, lambda: [wrong, off, other])
    monkeypatch.setattr(plan, "parts", lambda *_: [part])
    for _ in range(2):  # a part that is done is not forgiven
        outcome = measure(SETTINGS, tmp_path, None, print)
        assert [one.reason for one in outcome.failed] == [
            "1 of 200 steps differ from eager under finemoe (bfloat16)",
            "the last logits differ from eager's under on-demand",
        ]
    assert len(read_table("skipped", tmp_path)) == 2


def test_published_sizes_want_a_gpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "finemoe.gpu_bench", "--out", str(tmp_path), "-m", "mixtral-8x7b"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "finemoe: mixtral-8x7b: published sizes are measured on a CUDA device, and there is none; "
        "leave --model out for the miniatures' sizes on pools of host memory\n"
    )
    assert not list(tmp_path.iterdir())


def test_parts_of_a_layer_are_not_told_apart_where_they_cannot_be():
    subject = object.__new__(Subject)
    subject.layers = find_moe_layers(families.build("gpt_oss"))
    with pytest.raises(NotHere, match="cannot be timed apart"):
        subject.require_parts()
    subject.layers = find_moe_layers(families.build("mixtral"))
    subject.require_parts()


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
    assert " " not in target_of("owner/a name").name
    with pytest.raises(FinemoeError, match="unknown model 'qwen'; known: mixtral-8x7b"):
        target_of("qwen")
    assert np.isclose(sum(settings_for(True).expert_memories), 2.625)
    assert pd.Series(settings_for(True).models).is_unique
