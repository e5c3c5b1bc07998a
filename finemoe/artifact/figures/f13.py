"""Figure 13: the systems on one A100 80 GB, and what was measured on a real GPU."""

from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.figures.f10 import SIZES
from finemoe.artifact.figures.panels import percent
from finemoe.artifact.figures.systems import systems_figure
from finemoe.artifact.machines.measured import NOT_YET
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(summary: pd.DataFrame, gains: pd.DataFrame, measured: pd.DataFrame, testbed: str, expert_memory: float) -> "Figure":
    """Draw Figure 13.

    Args:
        summary: as `analysis.latency.means` by model, dataset and system.
        gains: as `verdicts.gains.gains_table`; what it has of the paper's gains, which are Figure 10's, is not drawn.
        measured: as `machines.cells.tpot_on_gpu`; may be empty.
        testbed, expert_memory: for the line below the figure.
    """
    settings = [Testbed.load(testbed).title, percent(expert_memory), SIZES, *([] if len(measured) else [NOT_YET])]
    return systems_figure(summary, gains.assign(reported=float("nan")), measured, *settings)
