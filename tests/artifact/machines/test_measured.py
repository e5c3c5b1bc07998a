"""Figure, tables and pages of machines whose tables were written by hand: whole, in part, with and without a GPU."""

import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.machines.aims import (
    ACCELERATE,
    BITS,
    COPIED,
    LINK_USE,
    MET,
    MISSED,
    NOT_BOUND,
    NOT_MEASURED,
    OVER_LIMIT,
    OVERHEAD,
    SIMULATED,
    shown,
    targets_table,
)
from finemoe.artifact.machines.cells import cells_table, foretold_table, link_peak, tpot_on_gpu
from finemoe.artifact.machines.figure import PREDICTED, measured_figure
from finemoe.artifact.machines.foretold import read_all_foretold
from finemoe.artifact.machines.measured import NOT_YET, machines_in
from finemoe.artifact.machines.pages import (
    claims_section,
    foretold_section,
    machine_lines,
    measured_section,
    simulator_lines,
)
from finemoe.artifact.machines.points import figure_table
from finemoe.artifact.machines.schema import Correctness, Overhead, Predictions
from tests.artifact.machines.made_up import FULL, LINK, MODEL, make_machine, make_predictions, request

PARTIAL = {
    "nothing": {},
    "the link": {"copies": LINK},
    "one cell": {"copies": LINK, "requests": FULL["requests"][:1]},
    "requests without a link": {"requests": FULL["requests"]},
    "overhead": {"overhead": FULL["overhead"]},
    "Accelerate": {"baselines": FULL["baselines"]},
    "all but predictions": {name: rows for name, rows in FULL.items() if name != "predictions"},
    "all": FULL,
}


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    plt.close("all")


@pytest.fixture
def gpu(tmp_path):
    make_predictions(tmp_path)
    return make_machine(tmp_path / "h100", True, FULL)


@pytest.fixture
def cpu(tmp_path):
    make_predictions(tmp_path)
    return make_machine(tmp_path / "cpu", False, FULL)


def texts_of(fig):
    titles = [text for place in fig.subfigs for text in place.texts] + [place._suptitle for place in fig.subfigs]
    return [text.get_text() for text in [*titles, *(text for axis in fig.axes for text in [axis.title, *axis.texts])]]


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path, monkeypatch) -> None:
    """Predictions are those that a test makes up."""
    monkeypatch.setattr("finemoe.artifact.machines.foretold.MEASURED", tmp_path)


def test_cells_are_those_computed_by_hand(gpu):
    cells = cells_table(gpu).set_index(["policy", "expert_memory"])
    ours = cells.loc[("finemoe", 0.25)]
    assert ours.tpot_s == pytest.approx((10 * 0.02 + 30 * 0.04) / 40)
    assert (ours.tpot_s_low, ours.tpot_s_high) == (0.02, 0.04)
    assert ours.hit_rate == pytest.approx(290 / 400)
    assert ours.link_use == pytest.approx(4e9 / (2 * 0.1 + 0.2 + 1.2) / 10e9)
    assert ours.link_use_high == pytest.approx(1e9 / (0.1 + 0.2) / 10e9)
    assert ours.moved_bytes_per_step == pytest.approx(1e8)
    assert (ours.error, ours.limit_tpot_s) == (-0.2, 0.028)
    assert np.isnan(cells.loc[("on-demand", 0.5)].error)


def test_reading_without_a_copy_is_no_peak(gpu):
    assert link_peak(gpu) == 10e9


def test_errors_of_predictions_are_positive_where_too_much_was_predicted(gpu):
    """Only cells that were predicted and measured: ProMoE was not measured, loading on demand at a half was not predicted."""
    errors = foretold_table(gpu).set_index("policy")
    assert sorted(errors.index) == ["finemoe", "on-demand"]
    assert errors.tpot_s_error["finemoe"] == pytest.approx(0.028 / 0.035 - 1)
    assert errors.tpot_s_error["on-demand"] == pytest.approx(0.1)
    assert errors.hit_rate_error["finemoe"] == pytest.approx(0.8 - 0.725)
    assert errors.link_use_error["on-demand"] == pytest.approx(0.59 - 2.6 / 0.4 / 10)


def test_another_card_was_not_predicted(cpu):
    assert foretold_table(cpu).empty


def test_targets_are_judged_by_their_definitions(gpu):
    found = targets_table(gpu).set_index("target")
    expected = {
        BITS: (0, MET),
        COPIED: (0.8, MISSED),
        LINK_USE: (2.6 / 0.4 / 10, MISSED),
        OVER_LIMIT: (1.25, MISSED),
        ACCELERATE: (1.05 / 0.035, MET),
        OVERHEAD: (0.0121 / 0.011 - 1, MISSED),
        SIMULATED: (0.2, MISSED),
    }
    assert set(found.index) == set(expected)
    for target, (reached, verdict) in expected.items():
        assert (found.reached[target], found.verdict[target]) == (pytest.approx(reached), verdict), target
    assert found.model[BITS] == found.model[COPIED] == "all"
    assert (found.model.drop([BITS, COPIED]) == MODEL).all()
    assert [shown(name, found.reached[name]) for name in (COPIED, OVERHEAD, ACCELERATE)] == ["80.0 %", "+10.0 %", "30.0"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"correctness": [Correctness("phi-mini", "bfloat16", "promoe", 0.25, 40, 1)]},
        {"overhead": [*FULL["overhead"], Overhead(MODEL, "on-demand", 0, 0.01, False)]},
    ],
)
def test_a_single_bit_misses_the_target(tmp_path, wrong):
    found = targets_table(make_machine(tmp_path / "gpu", True, FULL | wrong)).set_index("target")
    assert (found.reached[BITS], found.verdict[BITS]) == (1, MISSED)


def test_a_link_that_is_no_bottleneck_is_not_judged(tmp_path):
    """Bytes at the peak take 0.26 s of 0.4; with a limit three times as high as what they take, arithmetic decides."""
    limit = [Predictions(MODEL, "on-demand", 0.25, 0.03, 0.03, 0.0, 0.09, 1 / 3, 0.65)]
    found = targets_table(make_machine(tmp_path / "gpu", True, FULL | {"predictions": limit})).set_index("target")
    assert found.verdict[LINK_USE] == NOT_BOUND


def test_accelerate_is_compared_at_the_same_memory_only(tmp_path):
    machine = make_machine(tmp_path / "gpu", True, FULL | {"requests": [request("finemoe", 0.5, 0, 10, 0.02, 50, 10**9)]})
    assert targets_table(machine).set_index("target").verdict[ACCELERATE] == NOT_MEASURED


@pytest.mark.parametrize("is_gpu", [True, False])
@pytest.mark.parametrize("tables", PARTIAL.values(), ids=PARTIAL)
@pytest.mark.filterwarnings("error")
def test_whatever_is_missing_is_said(tmp_path, tables, is_gpu):
    make_predictions(tmp_path)
    machine = make_machine(tmp_path / "machine", is_gpu, tables)
    cards = read_all_foretold(tmp_path)
    fig = measured_figure(machine, cards)
    fig.canvas.draw()
    texts = texts_of(fig)
    assert ("not measured" in texts) == ("copies" not in tables or "overhead" not in tables)
    assert any(PREDICTED in text for text in texts) == (not is_gpu)
    assert set(figure_table(machine, cards).source) >= {"predicted beforehand"}
    verdicts = targets_table(machine).set_index("target").verdict
    assert (verdicts[OVERHEAD] == NOT_MEASURED) == ("overhead" not in tables)
    assert (verdicts[COPIED] == NOT_MEASURED) == ("copies" not in tables)
    assert (verdicts[OVER_LIMIT] == NOT_MEASURED) == ("predictions" not in tables)
    said = measured_section([machine]) + machine_lines([machine], cards) + simulator_lines([machine]) + claims_section([machine])
    assert "nan" not in said
    assert (NOT_YET in claims_section([machine])) == (not is_gpu)
    assert tpot_on_gpu([machine], 0.25).empty == (not is_gpu or "requests" not in tables)


def test_no_machine_at_all(tmp_path):
    cards = read_all_foretold(tmp_path)
    assert NOT_YET in texts_of(measured_figure(None, cards))
    assert figure_table(None, cards).source.tolist() == [NOT_YET]
    assert machines_in(tmp_path) == []
    make_predictions(tmp_path)
    texts = texts_of(measured_figure(None, read_all_foretold(tmp_path)))
    assert f"one H100, {MODEL}: {PREDICTED}" in texts
    assert "FineMoE 28 ms" in machine_lines([], read_all_foretold(tmp_path))
    assert "| FineMoE | 28 ms, 80 %, 24 % |" in foretold_section(read_all_foretold(tmp_path))


def test_the_link_is_drawn_once_and_every_point_is_in_the_table(tmp_path):
    """Two models, one machine: a row for each model, one link; peak and nine tenths of it."""
    other = replace(FULL["requests"][0], model="mixtral-8x7b")
    machine = make_machine(tmp_path / "gpu", True, FULL | {"requests": [other, *FULL["requests"]]})
    fig = measured_figure(machine, read_all_foretold(tmp_path))
    links = [axis for axis in fig.axes if axis.get_title().startswith("link")]
    assert [axis.get_title() for axis in links] == ["link, inference idle", "link, inference launching"]
    assert len(fig.axes) == 4 + 3 + 3
    for axis in links:
        level = sorted(line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1])
        assert level == pytest.approx([9.0, 10.0])
    table = figure_table(machine, read_all_foretold(tmp_path))
    assert sorted(table[table.quantity == "bytes_per_s"].value) == sorted(one.bytes_per_s for one in LINK)
    assert sorted(table[table.quantity == "seconds_per_token"].value) == sorted(one.seconds_per_token for one in FULL["overhead"])


def hollow(axis):
    return sorted(line.get_ydata()[0] for line in axis.lines if line.get_markerfacecolor() == "white")


def test_predictions_are_hollow_beside_what_was_measured(gpu):
    axes = {axis.get_ylabel(): axis for axis in measured_figure(gpu, read_all_foretold(gpu.folder.parent)).axes}
    assert hollow(axes["TPOT (ms)"]) == pytest.approx([28.0, 33.0])  # ProMoE's is not there, which was not measured
    assert hollow(axes["error of TPOT (%)"]) == pytest.approx([-20.0, 10.0])


def test_only_a_gpu_fills_the_measured_row_of_figure_13(tmp_path, gpu):
    cpu = make_machine(tmp_path / "cpu-2-cores", False, FULL)
    empty = make_machine(tmp_path / "other", True, {"baselines": FULL["baselines"]})
    assert tpot_on_gpu([cpu], 0.25).empty
    drawn = tpot_on_gpu([cpu, empty, gpu], 0.25)
    assert dict(zip(drawn.system, drawn.tpot_s, strict=True)) == {
        "FineMoE": pytest.approx(0.03),
        "on-demand (LRU)": 0.03,
        "accelerate": 1.05,
    }
    assert (drawn.machine == gpu.title).all()
    assert tpot_on_gpu([gpu], 0.75).empty


def test_machines_are_folders_with_facts_gpus_first(tmp_path):
    for name, is_gpu in (("a-cpu", False), ("h100", True), (".hidden", True), ("h100/rehearsal", True)):
        make_machine(tmp_path / name, is_gpu, FULL)
    (tmp_path / "empty").mkdir()
    assert [one.folder.name for one in machines_in(tmp_path)] == ["h100", "a-cpu"]


def test_pages_say_what_was_refuted(gpu):
    said = measured_section([gpu])
    assert f"| {MODEL} | FineMoE | 25 % | 28 ms, 35 ms, -20% | 0.80, 0.72, +0.08 | 0.24, 0.25, -0.01 |" in said
    assert "TPOT in 1 of 2 cells, hit rate in 1 of 2 cells, link use in 1 of 2 cells" in said
    assert f"- {MODEL} at 25 %, fastest first: predicted FineMoE, on-demand (LRU); measured on-demand (LRU), FineMoE" in said
    assert "| all | steps that differ from eager in any bit | 0 | 0 of 41 | met |" in said  # 40, and one for all rounds
    assert f"- {MODEL}, experts: 300 µs launched kernel by kernel, 6 µs as a CUDA graph, the same bits." in said
    assert "8 MiB" not in said
    assert "chunks of 2.0 MiB: TPOT 20 ms" in said


def test_a_gpu_replaces_not_yet_measured_everywhere(gpu):
    cards = read_all_foretold(gpu.folder.parent)
    said = machine_lines([gpu], cards) + measured_section([gpu]) + simulator_lines([gpu]) + claims_section([gpu])
    assert NOT_YET.lower() not in said.lower()
    line = machine_lines([gpu], cards)
    assert line.count("\n") == 1
    assert "at 25 % of its experts: on-demand (LRU) 30 ms, FineMoE 35 ms" in line
    assert "predicted beforehand: TPOT off by 15 % on average and 20 % at most" in line
    assert "link 10.0 GB/s" in line


def test_a_cpu_is_told_apart(cpu):
    said = machine_lines([cpu], pd.DataFrame(columns=["card", "model", "expert_memory"]))
    assert said.startswith("**Not yet measured on a GPU.**")
    assert "not how fast a GPU is: all 41 steps checked equal eager's bit for bit; measured in 8 minutes, 1 call" in said
    assert (
        "2 cells of 2 systems on qwen1.5-moe-a2.7b; 1 are within 10 %, the mean error is 12 %, the largest 20 %"
        in simulator_lines([cpu])
    )
    assert "Targets:" not in measured_section([cpu])


def test_making_pages_needs_no_torch():
    code = "import finemoe.artifact.machines.pages, sys; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
