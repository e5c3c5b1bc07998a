"""The headline: mean gains in latency and hit rate over the baselines."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from finemoe.artifact.figures.grids import grid
from finemoe.artifact.figures.panels import percent
from finemoe.artifact.plotting import provenance
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {"the paper": ("white", ""), "miniatures": ("#0072B2", "//"), "gpt-oss-20b": ("#E69F00", "..")}


def draw(table: pd.DataFrame, testbed: str, expert_memory: float) -> "Figure":
    """Draw the headline.

    Args:
        table: as `verdicts.headline.headline_table`. testbed, expert_memory: for the line below the figure.
    """
    fig, axes = grid(1, 1, 6.4, 4.2)
    axis, bars = axes[0][0], {"y": "gain of", "x": "share", "hue": "panel", "edgecolor": "black", "linewidth": 0.6}
    colours = {name: colour for name, (colour, _) in _LOOKS.items()}
    sns.barplot(table.assign(share=100 * table.share), palette=colours, hue_order=list(_LOOKS), ax=axis, **bars)
    for container, (_, hatch) in zip(axis.containers, _LOOKS.values(), strict=False):
        plt.setp(container, hatch=hatch)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axhline(1.5, color="#888888", linewidth=0.8, linestyle=":")  # between the two means and what they are means of
    axis.set(xlabel="FineMoE's gain (%): latency lower, hit rate higher", ylabel="")
    axis.legend(title="")
    provenance(fig, "simulated", Testbed.load(testbed).title, percent(expert_memory), "means over models and datasets")
    return fig
