"""Figure 11: request latency and service time, online."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import seaborn as sns

from finemoe.artifact.analysis.latency_figure import line_look
from finemoe.artifact.figures.grids import grid
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title, percent
from finemoe.artifact.plotting import provenance
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["model", "system", "request", "arrival_s", "prompt_tokens", "new_tokens"]
COLUMNS += ["waiting_s", "service_s", "latency_s", "accesses", "hits"]
_QUANTITIES = {"latency_s": "latency from arrival (s)", "service_s": "service time (s)"}
_MARK_SPACING = 0.14  # of an axis, between two marks of a curve


def draw(requests: pd.DataFrame, testbed: str, expert_memory: float, online_rate: float, arrivals_file: str = "") -> "Figure":
    """Draw Figure 11.

    Args:
        requests: COLUMNS, as `analysis.online.online_table` has them, with the model.
        testbed, expert_memory, online_rate: for the line below the figure.
        arrivals_file: the same; the trace that the requests were drawn from, empty if they were generated.
    """
    models = in_order(requests.model)
    fig, axes = grid(2, len(models), 2.9, 4.6, sharey=True)
    for row, (quantity, label) in zip(axes, _QUANTITIES.items(), strict=True):
        for axis, model in zip(row, models, strict=True):
            _draw_shares(axis, requests[requests.model == model], quantity)
            axis.set(xscale="log", xlabel=label, ylabel="share of requests")
    for axis, model in zip(axes[0], models, strict=True):
        axis.set_title(panel_title(model))
    legend_above(fig, axes[0], ncols=4)
    source = f" of {Path(arrivals_file).stem}" if arrivals_file else ""
    served = f"{requests.request.nunique()} requests{source} at {online_rate:g}/s, one at a time"
    provenance(fig, "simulated", Testbed.load(testbed).title, percent(expert_memory), served)
    return fig


def _draw_shares(axis: "Axes", requests: pd.DataFrame, quantity: str) -> None:
    """The share of requests that took at most this long, for each system; marks are staggered to not hide each other."""
    for place, (name, part) in enumerate(requests.groupby("system", sort=False)):
        look: dict[str, Any] = line_look(str(name)) | {"markevery": (0.02 * place, _MARK_SPACING)}
        sns.ecdfplot(part[quantity], ax=axis, **look)
