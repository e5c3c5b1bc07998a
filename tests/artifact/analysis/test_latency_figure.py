"""The picture of systems side by side: what is not in the paper is marked as such, looks like no other, and has no gain."""

import matplotlib

matplotlib.use("agg")

import matplotlib.colors as colors
import matplotlib.pyplot as plt
import pytest

from finemoe.artifact.analysis.latency import BASELINES, OURS, SHOWN_SYSTEMS, means
from finemoe.artifact.analysis.latency_figure import shown_name, system_looks, systems_figure
from finemoe.artifact.plotting import use_style
from finemoe.artifact.verdicts.gains import gains_table
from tests.artifact.tables import requests


@pytest.fixture
def figure():
    rows = {name: [0.1 + 0.01 * place] * 3 for place, name in enumerate(SHOWN_SYSTEMS)}
    table = requests(**rows).assign(model="mixtral-mini", dataset="questions")
    fig = systems_figure(means(table, ["model", "dataset", "system"]), gains_table(table))
    yield fig
    plt.close(fig)


def test_the_legend_says_what_is_not_in_the_paper(figure):
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert [shown_name(name) for name in SHOWN_SYSTEMS] == names[: len(SHOWN_SYSTEMS)]
    assert [name for name in names if name.endswith("(not in the paper)")] == [f"{name} (not in the paper)" for name in OURS]


def test_gains_are_the_papers(figure):
    labels = [label.get_text().replace("-\n", "-") for label in figure.axes[3].get_xticklabels()]
    assert labels == list(BASELINES)


def test_no_two_systems_look_alike():
    use_style()
    looks = system_looks()
    assert set(looks) == set(SHOWN_SYSTEMS)
    bars = {(colors.to_hex(look["color"]), look["hatch"]) for look in looks.values()}
    assert len(bars) == len({colors.to_hex(look["color"]) for look in looks.values()}) == len(SHOWN_SYSTEMS)
