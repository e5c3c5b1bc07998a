"""Drawings of the tour and the studies from the shipped tables: panels, labels with units, nothing outside the canvas."""

import matplotlib

matplotlib.use("agg")

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.analysis.comparison_figure import comparison_figure
from finemoe.artifact.analysis.coverage import covered_in_words
from finemoe.artifact.analysis.exploring import explore_figure
from finemoe.artifact.analysis.finemoe_plus_figure import evidence_figure
from finemoe.artifact.figures import (
    disagreement,
    engine_overhead,
    finemoe_plus,
    paced_link,
    quickstart,
    scale,
    training_curves,
    validate_simulator,
)
from finemoe.artifact.figures.gpu_measured import (
    errors_on_gpus,
    every_cell,
    foretold_cells,
    in_words,
    judged_targets,
    load_machines,
)
from finemoe.artifact.machines.figure import measured_figure
from finemoe.artifact.machines.foretold import read_all_foretold
from finemoe.artifact.machines.measured import NOT_YET
from finemoe.paths import DATA, REFERENCE_FIGURES

SCALE = ("h200", 0.25, 3, 1000)


def shipped(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE_FIGURES / f"{name}.csv")


def settings() -> pd.DataFrame:
    rows = {"system": ["on-demand (LRU)", "FineMoE", "oracle"], "tpot_ms": [40.0, 20.0, 15.0], "hit_rate": [0.4, 0.8, 1.0]}
    return pd.DataFrame(rows)


# Of every drawing: how it is made, how many panels it has, and the labels that its axes have among them.
DRAWINGS = {
    "quickstart": (lambda: quickstart.draw(shipped("quickstart"), "mixtral-mini", 0.25), 2, {"MoE layer", "demanded experts"}),
    "disagreement": (
        lambda: disagreement.draw(disagreement.read_table("data/reference/disagreement_gpt_oss.csv")),
        4,
        {"TPOT (ms)", "store capacity (maps)", "eviction rule", "requests ProMoE learns from", "link (times)"},
    ),
    "engine_overhead": (lambda: engine_overhead.draw(shipped("engine_overhead_measured")), 2, {"decode time / eager's"}),
    "paced_link": (lambda: paced_link.draw(shipped("paced_link_measured")), 3, {"TPOT (ms)"}),
    "scale": (
        lambda: scale.draw(shipped("scale"), *SCALE),
        4,
        {"devices", "ms per token", "C (maps)", "store (MB)", "one trajectory search (ms)"},
    ),
    "training": (
        lambda: training_curves.draw(shipped("training")),
        4,
        {"tokens seen (millions)", "training loss (nats per token)", "load-balancing loss"},
    ),
    "validate_simulator": (
        lambda: validate_simulator.draw(shipped("validate_simulator_measured"), 1, 5),
        3,
        {"measured TPOT (ms)", "predicted TPOT (ms)"},
    ),
    "finemoe_plus": (lambda: evidence_figure(shipped("finemoe_plus")), None, {"recall at K (share)", "ratio of TPOT"}),
    "compare_systems": (
        lambda: comparison_figure(shipped("compare_systems/mixtral-mini-questions"), "mixtral-mini", "questions", "d = 3"),
        2,
        {"expert memory (share of all experts)", "expert hit rate", "experts loaded per expert demanded"},
    ),
    "explore": (
        lambda: explore_figure(settings(), "a model on a machine", (10.0, 1000.0), settings().assign(tpot_ms=[80.0, 40.0, 30.0])),
        2,
        {"TPOT (ms)", "expert hit rate"},
    ),
    "gpu_measured": (
        lambda: measured_figure(machines()[0], read_all_foretold(DATA / "measured")),
        None,
        {"TPOT (ms)", "host to slots (GB/s)", "experts in the cache (%)"},
    ),
}


def machines():
    return load_machines([str(path.parent) for path in sorted((DATA / "measured").glob("*/machine.json"))])


@pytest.fixture(scope="module")
def figures():
    made = {}
    yield lambda name: made.get(name) or made.setdefault(name, DRAWINGS[name][0]())
    plt.close("all")


every_drawing = pytest.mark.parametrize("name", DRAWINGS)


@every_drawing
def test_panels_and_labels(figures, name):
    fig, (_, num_panels, labels) = figures(name), DRAWINGS[name]
    assert num_panels in (None, len(fig.axes))
    assert labels <= {text for axis in fig.axes for text in (axis.get_xlabel(), axis.get_ylabel())}


@every_drawing
def test_nothing_is_outside_the_canvas(figures, name):
    fig = figures(name)
    fig.canvas.draw()
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert min(box.x0, box.y0) > -0.05
    assert box.x1 < width + 0.05
    assert box.y1 < height + 0.05


@every_drawing
def test_the_executor_is_named(figures, name):
    assert figures(name).get_supxlabel().startswith("executor: ")


@every_drawing
def test_every_panel_shows_something(figures, name):
    for axis in figures(name).axes:
        assert axis.has_data() or axis.texts


def test_bars_are_what_the_table_counts(figures):
    table, axes = shipped("quickstart"), figures("quickstart").axes
    for axis, (_, part) in zip(axes, table.groupby("policy", sort=False), strict=True):
        heights = [sum(bar.get_height() for bar in bars) for bars in axis.containers]
        assert heights == [part.hit.sum(), part.late.sum(), part.miss.sum()]


def test_verdicts_stand_below_the_bars_that_they_judge(figures):
    table = shipped("paced_link_measured")
    verdicts = list(paced_link.judged(table).verdict)
    labels = [label.get_text().partition("\n")[2] for axis in figures("paced_link").axes for label in axis.get_xticklabels()]
    assert labels == verdicts
    assert len(verdicts) == 9


def test_hollow_cells_are_those_not_decided(figures):
    table = shipped("validate_simulator_measured")
    lines = [line for axis in figures("validate_simulator").axes for line in axis.lines if line.get_marker() != "None"]
    hollow = sum(len(line.get_xdata()) for line in lines if line.get_fillstyle() == "none")
    assert hollow == (table.verdict == "not decided").sum()
    assert sum(len(line.get_xdata()) for line in lines) == len(table)
    assert validate_simulator.largest_error(table).startswith("largest error: ")


def test_axes_stay_while_a_slider_moves():
    limits = (10.0, 1000.0)
    before, after = settings(), settings().assign(tpot_ms=[400.0, 200.0, 150.0], hit_rate=[0.1, 0.2, 0.3])
    first, second = explore_figure(before, "", limits), explore_figure(after, "", limits, before)
    for one, other in zip(first.axes, second.axes, strict=True):
        assert one.get_xlim() == other.get_xlim()
        assert one.get_ylim() == other.get_ylim()
    hollow = [line.get_xdata()[0] for line in second.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert set(before.tpot_ms) <= set(hollow)
    assert "400 (was 40)" in [text.get_text() for text in second.axes[0].texts]
    plt.close("all")


def test_where_the_design_stops_scaling_is_said_of_every_model():
    sentences = scale.limits_in_words(shipped("scale"))
    assert [text.partition(":")[0] for text in sentences] == ["qwen3-235b-a22b", "deepseek-v3"]
    assert all("a search takes longer than a layer" in text for text in sentences)


def test_coverage_is_said_as_a_share():
    row = {"maps": "random", "promised": 0.98, "wanted": 2000, "stored": 1500, "median": 0.5, "covered": 0.021}
    assert list(covered_in_words(pd.DataFrame([row]))) == [
        "random: 1,500 maps where the theory asks for 2,000. 2.1% of new maps have one that is at least 98% similar "
        "(promised: all); the median best match is 0.500."
    ]


def test_every_sentence_on_finemoe_plus_has_its_numbers():
    points = shipped("finemoe_plus")
    cells = finemoe_plus.cells_of("data/reference/causal_grid.csv")
    told = [
        *finemoe_plus.calibration_in_words(points),
        *finemoe_plus.recall_in_words(points),
        *finemoe_plus.eviction_in_words(points),
        *finemoe_plus.speed_in_words(cells),
        *finemoe_plus.folds_in_words("data/reference/next_use_gpt_oss.csv"),
        *finemoe_plus.slower_in_words(points),
        *finemoe_plus.costs_in_words(cells),
        *finemoe_plus.little_in_words(points),
    ]
    assert all(re.search(r"\d", text) and "nan" not in text for text in told)
    assert finemoe_plus.recall_table(points).notna().all(axis=None)
    assert np.isfinite(finemoe_plus.sizes_table("data/reference/forecasts_gpt_oss.csv").to_numpy()).all()


def test_machines_with_and_without_a_gpu():
    cards = read_all_foretold(DATA / "measured")
    gpu = [one for one in machines() if one.is_gpu]
    without = [one for one in machines() if not one.is_gpu]
    for found in (gpu + without, without, []):
        assert (NOT_YET in in_words(found)) == (not any(one.is_gpu for one in found))
        assert len(every_cell(found)) == sum(
            one.tables["requests"].groupby(["model", "policy", "expert_memory"]).ngroups for one in found
        )
        assert (judged_targets(found).verdict == NOT_YET).all() == (not any(one.is_gpu for one in found))
        assert (NOT_YET in errors_on_gpus(found).to_numpy()) == (not any(one.is_gpu for one in found))
        assert len(foretold_cells(found, cards))


def test_cards_of_which_the_same_is_predicted_share_a_row():
    cards = read_all_foretold(DATA / "measured")
    one = cards[cards.card == cards.card.iloc[0]]
    other = one.assign(card="another card", tpot_s=2 * one.tpot_s)
    assert len(measured_figure(None, pd.concat([one, one.assign(card="its twin")])).axes) == 3
    assert len(measured_figure(None, pd.concat([one, other])).axes) == 6
    plt.close("all")
