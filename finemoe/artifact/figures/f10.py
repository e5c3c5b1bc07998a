"""Figure 10: the systems on the paper's testbed."""

from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.figures.panels import percent
from finemoe.artifact.figures.systems import systems_figure
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = "routing of miniatures, sizes of the real models"


def draw(summary: pd.DataFrame, gains: pd.DataFrame, testbed: str, expert_memory: float) -> "Figure":
    """Draw Figure 10.

    Args:
        summary: as `analysis.latency.means` by model, dataset and system. gains: as `verdicts.gains.gains_table`.
        testbed, expert_memory: for the line below the figure.
    """
    return systems_figure(summary, gains, pd.DataFrame(), Testbed.load(testbed).title, percent(expert_memory), SIZES)
