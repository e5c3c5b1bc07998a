"""Figures 10 to 18 and the headline, drawn from the shipped tables: panels, labels, legends, and nothing off the canvas."""

import matplotlib

matplotlib.use("agg")

from collections.abc import Callable, Iterator
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from finemoe.artifact.analysis.latency import BASELINES, LATENCY_SYSTEMS, OURS, PAPER_SYSTEMS, SHOWN_SYSTEMS
from finemoe.artifact.analysis.latency_figure import shown_name
from finemoe.artifact.analysis.modelled_breakdown import BESIDE, CRITICAL
from finemoe.artifact.analysis.system_tables import ABLATION, EVICTIONS
from finemoe.artifact.figures import f10, f11, f12, f13, f14a, f14b, f15, f16a, f16b, f17, f18, headline
from finemoe.artifact.figures.panels import panel_title
from finemoe.artifact.machines.measured import NOT_YET
from finemoe.artifact.plotting import RULE_NAMES
from tests.artifact.verdicts.shipped import figure_table, miniatures, shipped_gains

NO_REQUESTS = pd.DataFrame()
MINIATURES = ["mixtral-mini", "qwen-mini", "phi-mini"]
MODELS = [*MINIATURES, "gpt-oss-20b"]


def gains_of(stem: str, by: tuple[str, ...] = ("model", "dataset")) -> pd.DataFrame:
    return shipped_gains(figure_table(stem), NO_REQUESTS, by)


def drawn_f10() -> Figure:
    return f10.draw(figure_table("f10"), gains_of("f10"), "6x-rtx3090", 0.25)


def drawn_f12() -> Figure:
    return f12.draw(figure_table("f12"), gains_of("f12", ("model", "dataset", "cache_limit_gb")), "6x-rtx3090")


def drawn_f13(measured: pd.DataFrame = NO_REQUESTS) -> Figure:
    return f13.draw(figure_table("f13"), gains_of("f13"), measured, "a100-80gb", 0.25)


def drawn_f17() -> Figure:
    live, modelled = (figure_table(stem).set_index("model") for stem in ("f17_measured", "f17"))
    return f17.draw(live, modelled, 5.0, "6x-rtx3090", 0.25, 3)


FIGURES: dict[str, Callable[[], Figure]] = {
    "f10": drawn_f10,
    "f11": lambda: f11.draw(figure_table("f11"), "6x-rtx3090", 0.25, 2.91),
    "f12": drawn_f12,
    "f13": drawn_f13,
    "f14a": lambda: f14a.draw(figure_table("f14a"), 0.25, [3, 3, 3], 1000),
    "f14b": lambda: f14b.draw(figure_table("f14b"), 0.25, [3, 3, 3], 1000),
    "f15": lambda: f15.draw(figure_table("f15"), "6x-rtx3090", 0.25),
    "f16a": lambda: f16a.draw(figure_table("f16a"), [3, 3, 3]),
    "f16b": lambda: f16b.draw(figure_table("f16b"), "6x-rtx3090", 0.25, 3),
    "f17": drawn_f17,
    "f18": lambda: f18.draw(figure_table("f18")),
    "headline": lambda: headline.draw(figure_table("headline"), "6x-rtx3090", 0.25),
}
# Panels with data, and the label of the first one's quantity.
PANELS = {
    "f10": (15, "TTFT (ms)"),
    "f11": (6, "latency from arrival (s)"),
    "f12": (8, "TPOT (ms)"),
    "f13": (15, "TTFT (ms)"),
    "f14a": (8, "expert hit rate"),
    "f14b": (4, "expert hit rate"),
    "f15": (7, "TTFT (ms)"),
    "f16a": (3, "store capacity C (maps)"),
    "f16b": (4, "TTFT (ms)"),
    "f17": (2, "ms per decode iteration"),
    "f18": (1, "memory (MB)"),
    "headline": (1, "FineMoE's gain (%): latency lower, hit rate higher"),
}
LEGENDS = {
    "f10": [shown_name(name) for name in SHOWN_SYSTEMS] + ["TTFT lower", "TPOT lower", "hit rate higher", "hollow: the paper's"],
    "f11": [*PAPER_SYSTEMS, "on-demand (LRU)", "No-offload"],
    "f12": [shown_name(name) for name in SHOWN_SYSTEMS],
    "f13": [shown_name(name) for name in SHOWN_SYSTEMS] + ["TTFT lower", "TPOT lower", "hit rate higher"],
    "f14a": ["questions", "dialogues", "mixed", "evicted unused"],
    "f14b": ["questions", "dialogues", "mixed", "filled: with FineMoE's prefetches", "hollow: on demand"],
    "f15": ["FineMoE", "oracle", "on-demand (LRU)", "questions", "dialogues", "mixed"],
    "f16a": ["semantic search", "trajectory search", "questions", "dialogues"],
    "f16b": list(LATENCY_SYSTEMS),
    "f17": [label for label, *_ in (*CRITICAL.values(), *BESIDE.values())],
    "f18": ["Mixtral-8x7B", "Qwen1.5-MoE-A2.7B", "Phi-3.5-MoE", "maps and embeddings", "maps"],
    "headline": ["the paper", "miniatures", "gpt-oss-20b"],
}
every_figure = pytest.mark.parametrize("figure", FIGURES, indirect=True)


@cache
def drawn(stem: str) -> Figure:
    """Drawn once for all tests, which only look at it."""
    fig = FIGURES[stem]()
    fig.stem = stem
    fig.canvas.draw()
    return fig


@pytest.fixture
def figure(request) -> Figure:
    return drawn(request.param)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    drawn.cache_clear()
    plt.close("all")


def with_data(fig: Figure) -> list[Axes]:
    return [axis for axis in fig.axes if axis.has_data() and axis.axison]


def legend_of(fig: Figure) -> list[str]:
    legends = [*fig.legends, *(legend for part in fig.subfigs for legend in part.legends)]
    legends += [axis.get_legend() for axis in fig.axes if axis.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def texts_of(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_visible() and text.get_text()]


@every_figure
def test_panels_and_their_quantities(figure):
    number, label = PANELS[figure.stem]
    axes = with_data(figure)
    assert len(axes) == number
    assert label in (axes[0].get_xlabel(), axes[0].get_ylabel())
    for axis in axes:  # an axis without a label shares one with a neighbour in its row, or has names at its ticks
        assert axis.get_xlabel() or axis.get_ylabel() or axis.get_title() or axis.get_subplotspec().colspan.start > 0


@every_figure
def test_legends_name_what_is_drawn(figure):
    assert legend_of(figure) == LEGENDS[figure.stem]


@every_figure
def test_nothing_is_off_the_canvas(figure):
    drawn_part = figure.get_tightbbox(figure.canvas.get_renderer())  # inches
    width, height = figure.get_size_inches()
    assert min(drawn_part.x0, drawn_part.y0) >= -0.01
    assert drawn_part.x1 <= width + 0.01
    assert drawn_part.y1 <= height + 0.01


@every_figure
def test_the_line_below_says_how_it_was_made(figure):
    assert figure.get_supxlabel().startswith("executor: ")


@every_figure
def test_no_name_of_the_code_is_shown(figure):
    shown = set(texts_of(figure))
    assert not shown & {*EVICTIONS, *MODELS[:3], "mixtral-8x7b", "qwen1.5-moe-a2.7b", "phi-3.5-moe", "on_demand"}


@pytest.mark.parametrize("stem", ["f10", "f11", "f12", "f13", "f14a", "f14b", "f15", "f16a"])
def test_every_model_has_a_title(stem):
    fig = drawn(stem)
    models = MODELS if "gpt-oss-20b" in set(figure_table(stem).model) else MINIATURES
    assert [axis.get_title() for axis in fig.axes if axis.get_title()] == [panel_title(model) for model in models]


@pytest.mark.parametrize("figure", ["f10", "f13"], indirect=True)
def test_bars_are_the_table(figure):
    """TPOT of the first model: each system's bar at its value, also where the axis ends below."""
    axis, table = figure.axes[len(MODELS)], figure_table(figure.stem)
    of_model = table[table.model == "mixtral-mini"]
    heights = [bar.get_height() for bar in axis.patches]
    expected = [1e3 * tpot_s for name in SHOWN_SYSTEMS for tpot_s in of_model[of_model.system == name].tpot_s]
    assert [height for height in heights if np.isfinite(height)] == pytest.approx(expected)


@pytest.mark.parametrize("figure", ["f10", "f13"], indirect=True)
def test_a_bar_that_is_cut_has_its_value(figure):
    axis, table = figure.axes[len(MODELS)], figure_table(figure.stem)
    top = axis.get_ylim()[1]
    of_model = table[(table.model == "mixtral-mini")]
    cut = of_model[1e3 * of_model.tpot_s > top]
    assert set(cut.system) == {"DeepSpeed-Inference"}
    assert [text.get_text() for text in axis.texts] == [f" ↑ {1e3 * tpot_s:,.0f}" for tpot_s in cut.tpot_s]
    others = of_model[of_model.system != "DeepSpeed-Inference"].tpot_s.max()
    assert 1e3 * others > top / 2  # and what is left can be compared


@pytest.mark.parametrize("figure", ["f10"], indirect=True)
def test_gains_are_the_papers(figure):
    """Over its baselines, and none for what is not in it."""
    labels = [label.get_text().replace("-\n", "-") for label in figure.axes[-1].get_xticklabels()]
    assert labels == list(BASELINES)
    assert not set(labels) & set(OURS)


def test_an_a100_that_was_measured_gets_a_row():
    assert NOT_YET in (bare := drawn("f13")).get_supxlabel()
    times = {"FineMoE": 0.1, "ProMoE": 0.2, "llama.cpp": 9.0, "accelerate": float("nan")}
    rows = [("mixtral-8x7b", name, tpot_s, 0.5 * tpot_s, 2 * tpot_s, "a card") for name, tpot_s in times.items()]
    columns = ["model", "system", "tpot_s", "tpot_s_low", "tpot_s_high", "machine"]
    fig = drawn_f13(pd.DataFrame(rows, columns=columns))
    assert NOT_YET not in fig.get_supxlabel()
    assert "measured on a card" in fig.get_supxlabel()
    assert len(fig.axes) == len(bare.axes) + 1
    axis = fig.axes[-1]
    assert not axis.patches  # a bar has no length on an axis without zero
    assert [bars[0].get_xdata()[0] for bars in axis.containers] == pytest.approx([100, 200, 9000])
    ends = [bars[2][0].get_segments()[0][:, 0] for bars in axis.containers]
    assert np.array(ends) == pytest.approx(np.array([[50, 200], [100, 400], [4500, 18000]]))
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "FineMoE",
        "ProMoE",
        "llama.cpp",
    ]  # what has no value is left out
    assert axis.get_title() == "mixtral-8x7b on a card"


@pytest.mark.parametrize("figure", ["f14a"], indirect=True)
def test_what_a_trace_cannot_tell_is_marked(figure):
    table = figure_table("f14a")
    missing = set(ABLATION) - set(table[table.model == "gpt-oss-20b"].system)
    assert texts_of(figure).count("not testable") == 2 * len(missing) > 0


@pytest.mark.parametrize("figure", ["f14b"], indirect=True)
def test_rules_have_names(figure):
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [RULE_NAMES[rule] for rule in EVICTIONS]


def test_fewer_models_make_fewer_columns():
    """The smoke configuration has one model."""
    table = figure_table("f16a")
    fig = f16a.draw(table[table.model == "mixtral-mini"], [3])
    assert len(fig.axes) == 1
    table = miniatures(figure_table("f10"))
    fig = f10.draw(table[table.model == "mixtral-mini"], gains_of("f10"), "6x-rtx3090", 0.25)
    assert len(with_data(fig)) == 4
    assert "marks in pairs: questions, dialogues" in fig.get_supxlabel().replace("\n", " ")
    one = table[(table.model == "mixtral-mini") & (table.dataset == "questions")]
    assert "pairs" not in f10.draw(one, gains_of("f10"), "6x-rtx3090", 0.25).get_supxlabel()


def test_figure_11_names_the_trace_that_its_requests_are_drawn_from():
    fig = f11.draw(figure_table("f11"), "6x-rtx3090", 0.25, 2.91, "data/external/arrivals/azure2023_conv.csv")
    below = " ".join(text.get_text() for text in fig.texts)
    assert "requests of azure2023_conv at 2.91/s" in below
