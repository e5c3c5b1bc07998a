"""The whole measurement on pools of host memory: the same script, code and tables as on a GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import finemoe
from finemoe.artifact.gpu_bench import agenda
from finemoe.artifact.gpu_bench.agenda import measure
from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.correctness import check
from finemoe.artifact.gpu_bench.predict import foretell, predict
from finemoe.artifact.gpu_bench.settings import require_known, settings_for, target_of
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import size_of_target
from finemoe.artifact.gpu_bench.systems import requests_of
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.rows import read_table, write_table
from finemoe.artifact.machines.schema import CHUNKED, PREFETCHED, QUEUED, TABLES, Correctness, Overhead
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.paths import ROOT
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace
from tests.runtime import families

pytestmark = pytest.mark.timeout(900)  # a whole slice is measured twice

SETTINGS = replace(settings_for(is_cuda=False, quick=True), models=("qwen-mini",), checked_models=("phi-mini",))
FIRST = ("on-demand", "finemoe", "finemoe-plus", "promoe")  # that the slice measures before the others


@dataclass(frozen=True)
class Slice:
    """A slice that was killed and called again: tables after the kill, tables in the end, and the archive."""

    killed: Measured
    machine: Measured
    archive: Path


def begin_slice(folder: Path, log: Path, *options: str) -> subprocess.Popen:
    command = ["scripts/gpu_slice.sh", "--miniature", "--quick", "--folder", str(folder), *options]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )


def measured_cells(folder: Path) -> int:
    path = folder / "requests.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


@pytest.fixture(scope="module")
def slice_(tmp_path_factory) -> Slice:
    folder = tmp_path_factory.mktemp("measured") / "here"
    archive, log = folder.with_name("here.tar.gz"), folder.with_name("log.txt")
    first = begin_slice(folder, log)
    while first.poll() is None and not measured_cells(folder):
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    killed = Measured.load(folder)
    assert len(killed.tables["requests"]), log.read_text()
    assert begin_slice(folder, log).wait() == 0, log.read_text()
    predict(folder)
    return Slice(killed, Measured.load(folder), archive)


@pytest.fixture(scope="module")
def machine(slice_) -> Measured:
    return slice_.machine


def test_a_slice_that_is_killed_leaves_tables_and_goes_on_where_it_ended(slice_):
    """What was measured before the kill is in the end what it was, and was not measured again."""
    for name in ("arenas", "copies", "requests"):
        before, after = slice_.killed.tables[name], slice_.machine.tables[name]
        pd.testing.assert_frame_equal(after[: len(before)], before)
    written = [path.read_text() for path in sorted(slice_.machine.folder.glob("parts-*.json"))]
    titles = [title for text in written if text for title in json.loads(text)["done"]]  # a call may be killed before it writes
    assert len(titles) == len(set(titles))
    served = [title for title in titles if title.startswith("systems")]
    assert served[: len(FIRST)] == [f"systems: qwen-mini {policy} 0.25" for policy in FIRST]


def test_the_archive_holds_what_the_folder_holds(slice_, tmp_path):
    with tarfile.open(slice_.archive) as archive:
        archive.extractall(tmp_path, filter="data")
    brought = Measured.load(tmp_path / slice_.machine.folder.name)
    assert brought.facts == slice_.machine.facts
    for name, table in slice_.machine.tables.items():
        if name != "predictions":  # made afterwards, away from the device
            pd.testing.assert_frame_equal(brought.tables[name], table)
    assert (brought.folder / "logs" / "summary.txt").read_text().count("qwen-mini: TPOT, hit rate and link use") == 1
    assert not list(brought.folder.glob("traces"))


def test_a_slice_ends_at_its_deadline_and_says_what_is_left(tmp_path):
    code = begin_slice(tmp_path / "here", tmp_path / "log.txt", "--seconds", "45", "--host-memory", "80MiB").wait()
    assert code == 0, (tmp_path / "log.txt").read_text()
    left = Measured.load(tmp_path / "here").tables["skipped"]
    assert "no time" in (tmp_path / "log.txt").read_text()
    assert set(left.reason) <= {"no time yet", "only a GPU reads host memory over a link"}


def test_too_little_memory_is_said_and_the_facts_are_the_result(tmp_path):
    assert begin_slice(tmp_path / "here", tmp_path / "log.txt", "--host-memory", "20MiB").wait() == 1
    said = (tmp_path / "log.txt").read_text()
    assert "skipped, 64.0 MiB of host memory are asked for, and 20.0 MiB may be taken" in said
    assert "nothing was copied: the facts are the result" in said
    assert Measured.load(tmp_path / "here").tables["copies"].empty


def test_a_call_beside_another_is_refused(tmp_path):
    first = begin_slice(tmp_path / "here", tmp_path / "first.txt", "--seconds", "60")
    while not (tmp_path / "here" / "logs" / "slice.txt").is_file():
        assert first.poll() is None
        time.sleep(0.05)
    assert begin_slice(tmp_path / "here", tmp_path / "second.txt", "--seconds", "60").wait() == 2
    assert "another call measures into" in (tmp_path / "second.txt").read_text()
    first.terminate()
    assert first.wait() == 1


def test_an_interrupted_slice_leaves_no_process_and_says_what_it_has(tmp_path):
    folder, log = tmp_path / "here", tmp_path / "log.txt"
    first = begin_slice(folder, log, "--seconds", "300")
    while not (folder / "logs" / "correctness-phi-mini.txt").is_file():
        assert first.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait() == 1
    assert not [command for command in commands() if str(folder) in command]
    assert "the measurements are in" in log.read_text()
    assert "host memory are ready" in (folder / "logs" / "summary.txt").read_text()
    assert (tmp_path / "here.tar.gz").is_file()


def commands() -> Iterator[str]:
    """Of every process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield path.read_text()


@pytest.mark.parametrize(
    "options", [["--second", "3"], ["--seconds", "ten"], ["--folder"], ["--archive", "/proc/a.tar.gz"], ["--archive", "."]]
)
def test_a_wrong_call_is_refused_before_anything_is_done(tmp_path, options):
    done = subprocess.run(["scripts/gpu_slice.sh", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "gpu_slice" in done.stderr


def test_every_table_is_there_and_as_the_schema_says(machine):
    assert set(machine.tables) == set(TABLES)
    assert all(len(table) for table in machine.tables.values())
    assert set(machine.tables["skipped"].group) == {"mapped", "launches", "device-timeline", "correctness"}  # for want of a GPU
    assert not machine.is_gpu
    assert "pools of memory" in machine.title
    assert (machine.folder / "timeline-qwen-mini.json").stat().st_size > 1000


def test_delays_change_no_bit(machine):
    correctness = machine.tables["correctness"]
    assert set(correctness.policy) == {*FIRST, "no-offload"}
    assert (correctness.num_steps == SETTINGS.steps).all()
    assert (correctness.num_different_steps == 0).all()


def test_delays_change_no_bit_of_policies_that_inference_waits_for():
    found = check("phi-mini", ("mixtral-offloading", "deepspeed-inference"), SETTINGS.steps, torch.device("cpu"), seed=1)
    assert [(one.num_steps, one.num_different_steps) for one in found] == [(SETTINGS.steps, 0), (1, 0)]


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


def test_another_call_measures_nothing_again(machine):
    said: list[str] = []
    measure(SETTINGS, machine.folder, None, said.append)
    *_, last = sorted(machine.folder.glob("parts-*.json"))
    assert json.loads(last.read_text())["done"] == {}
    assert [line.split("] ")[-1].split(":")[0] for line in said[::2]] == ["mapped", "launches", "device-timeline", "correctness"]
    assert all("skipped" in line for line in said[1::2])


def test_predictions_are_made_of_every_cell(machine):
    cells = machine.tables["requests"][["model", "policy", "expert_memory"]].drop_duplicates()
    predicted = machine.tables["predictions"]
    assert len(predicted) == len(cells) == len(SETTINGS.policies) * len(SETTINGS.expert_memories)
    for one in predicted.itertuples():
        mine = machine.tables["requests"].query(f"policy == '{one.policy}' and expert_memory == {one.expert_memory}")
        assert one.measured_tpot_s == pytest.approx(np.average(mine.tpot_s, weights=mine.num_decode_steps), rel=1e-4)
        assert one.error == pytest.approx(one.predicted_tpot_s / one.measured_tpot_s - 1, rel=1e-3, abs=1e-4)
        moved_bytes = (mine.prefetched_bytes + mine.demand_bytes).sum()
        peak = machine.tables["copies"].bytes_per_s.max()
        duration_s = (mine.ttft_s + mine.tpot_s * mine.num_decode_steps).sum()
        assert one.link_use == pytest.approx(moved_bytes / duration_s / peak, rel=1e-3)


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
    monkeypatch.setattr(agenda, "parts", lambda *_: [part])
    for _ in range(2):  # a part that is done is not forgiven
        outcome = measure(SETTINGS, tmp_path, None, print)
        assert [one.reason for one in outcome.failed] == [
            "1 of 200 steps differ from eager under finemoe (bfloat16)",
            "the last logits differ from eager's under on-demand",
        ]
    assert len(read_table("skipped", tmp_path)) == 2


def test_published_sizes_want_a_gpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "finemoe.artifact.gpu_bench", "--out", str(tmp_path), "-m", "mixtral-8x7b"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "finemoe: mixtral-8x7b: published sizes need a CUDA device, and there is none; "
        "omit --model to measure the miniatures' sizes with pools of host memory\n"
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
    with pytest.raises(FinemoeError, match="column chunk_bytes contains values that are not of type int"):
        read_table("copies", tmp_path)


def test_names_of_models():
    assert target_of("qwen1.5-moe-a2.7b").recorded_from == "qwen-mini"
    assert target_of("owner/name").recorded_from is None
    assert " " not in target_of("owner/a name").name
    with pytest.raises(FinemoeError, match="unknown model 'qwen'; known: mixtral-8x7b"):
        target_of("qwen")
    assert np.isclose(sum(settings_for(True).expert_memories), 2.625)
    assert pd.Series(settings_for(True).models).is_unique


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policies": ("finemo",)}, "unknown policy 'finemo'; known: finemoe, finemoe-plus, on-demand"),
        ({"checked_models": ("qwen",)}, "unknown miniature to check 'qwen'; known: mixtral-mini, qwen-mini, phi-mini"),
        ({"expert_memories": (0.5, 25.0)}, "expert_memory is 25; give a share of all experts"),
        ({"traces": "no/such/folder"}, "no/such/folder: no such folder of traces"),
    ],
)
def test_what_no_part_could_be_made_of_is_refused(changed, message):
    require_known(SETTINGS)
    with pytest.raises(FinemoeError, match=message):
        require_known(replace(SETTINGS, **changed))


def test_nothing_is_recorded_for_a_card_that_nobody_knows(tmp_path):
    with pytest.raises(FinemoeError, match=r"no testbed 'b200'; did you mean 'h200'\? known: .*h100, h200"):
        foretell("b200", SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_foretold_is_not_said_anew(tmp_path):
    (tmp_path / "predictions-before-h100.csv").write_text("said before")
    with pytest.raises(FinemoeError, match=r"predictions-before-h100\.csv: already exists"):
        foretell("h100", SETTINGS, tmp_path)
    assert (tmp_path / "predictions-before-h100.csv").read_text() == "said before"


def test_a_measured_model_that_is_gone_is_said_and_the_others_are_predicted(machine, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(machine.folder, copied)
    facts = machine.facts | {"settings": machine.facts["settings"] | {"models": ["/gone/weights", "qwen-mini"]}}
    (copied / "machine.json").write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="'/gone/weights' was measured, but cannot be predicted"):
        assert len(predict(copied)) == len(machine.tables["predictions"])


def test_predictions_are_never_of_other_tables(machine, tmp_path):
    """A call that does not predict leaves none behind."""
    copied = tmp_path / "copied"
    shutil.copytree(machine.folder, copied)
    measure(SETTINGS, copied, None, print, predicts=False)
    assert Measured.load(copied).tables["predictions"].empty


def test_a_folder_of_other_settings_is_refused_and_keeps_its_tables(machine):
    before = {path.name: path.read_bytes() for path in machine.folder.glob("*.csv")}
    with pytest.raises(FinemoeError, match="contains measurements with other settings or libraries, or of another machine"):
        measure(replace(SETTINGS, num_rounds=2), machine.folder, None, print)
    assert {path.name: path.read_bytes() for path in machine.folder.glob("*.csv")} == before


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3\n"])
def test_a_damaged_folder_is_one_clear_line(tmp_path, machine, content):
    with pytest.raises(FinemoeError, match="no machine was measured there"):
        Measured.load(tmp_path)
    shutil.copytree(machine.folder, tmp_path / "copied")
    (tmp_path / "copied" / "copies.csv").write_text(content)
    with pytest.raises(FinemoeError, match=r"copies\.csv: (not a table|has the columns)"):
        Measured.load(tmp_path / "copied")
    (tmp_path / "copied" / "machine.json").write_text('{"title"')
    with pytest.raises(FinemoeError, match=r"machine\.json: damaged"):
        Measured.load(tmp_path / "copied")
