"""Traces side by side: a row each, every number in the table, and tables of real traces where they have the machine."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from finemoe.artifact.advice.comparison import (
    COLUMNS,
    SHOWN_SYSTEMS,
    advice_on_traces,
    comparison_figure,
    comparison_points,
    shipped_advice,
)
from finemoe.artifact.advice.gallery_tables import write_advice
from finemoe.traces import RoutingTrace
from tests.artifact.advice.made_up import make_advice


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    plt.close("all")


def test_the_table_has_every_number_of_the_figure():
    found = {"one": make_advice(), "two": make_advice(machine=False)}
    points = comparison_points(found)
    assert list(points) == COLUMNS
    one, two = (points[points.trace == name] for name in found)
    advice = found["one"]
    rates = [row for row in advice.hit_rates if row["rule"] in ("lru", "next-use", "belady")]
    assert len(one) == len(rates) + len(advice.times) + len(advice.prefetching)
    assert one[one.panel == "hit rate"].value.tolist() == [row["hit_rate"] for row in rates]
    assert set(two.panel) == {"hit rate"}
    times = one[one.panel == "time per token"]
    assert times.value.tolist() == [row["tpot_s"] for row in advice.times]
    assert times.series.tolist() == [row["system"] for row in advice.times]
    assert (times.expert_memory_bytes == times.slots * advice.trace["expert_bytes"]).all()


def test_a_row_for_every_trace():
    found = {"one": make_advice(), "two": make_advice(intervals=False), "three": make_advice(machine=False)}
    fig = comparison_figure(found, "rtx4090")
    grid = np.array(list(fig.axes)).reshape(3, 3)
    assert [row[0].get_title(loc="left") for row in grid] == [f"{name}: 4×8/2" for name in found]
    assert [axis.get_visible() for axis in grid[2]] == [True, False, False]
    for axis in grid[:2, 1]:
        labels = set(axis.get_legend_handles_labels()[1])
        assert len(labels & {"on-demand (LRU)", "on-demand (next use)", "FineMoE", "finemoe-plus"}) == len(SHOWN_SYSTEMS) - 2
        assert {"perfect predictor", "all experts resident", "recommended"} <= labels
    (legend,) = fig.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names))


def test_tables_are_shown_on_their_machine_only(tmp_path):
    write_advice({("one", "rtx4090"): make_advice(), ("one", "laptop-8gb"): make_advice()}, tmp_path)
    assert list(shipped_advice(str(tmp_path), "rtx4090")) == ["one"]
    assert shipped_advice(str(tmp_path), "h100") == {}
    assert shipped_advice("", "rtx4090") == {}


def test_traces_are_replayed_with_the_sizes_they_are_given(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.stack([np.stack([rng.permutation(8)[:2] for _ in range(32)]) for _ in range(12)])
    trace = RoutingTrace.from_topk(expert_ids=ids, expert_probs=np.full(ids.shape, 0.5), offsets=[0, 6, 12], num_experts=8)
    trace.save(tmp_path / "small.trace")
    found = advice_on_traces([str(tmp_path / "small.trace")], ["mixtral-8x7b"], served_rows=20, history_rows=20)
    assert list(found) == ["small"]
    assert found["small"].machine is None
    assert (found["small"].trace["model"], found["small"].trace["layers"]) == ("mixtral-8x7b", 32)
