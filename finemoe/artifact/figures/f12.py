"""Figure 12: TPOT against the size of the expert cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.analysis.latency import SHOWN_SYSTEMS
from finemoe.artifact.analysis.latency_figure import line_look
from finemoe.artifact.figures.grids import grid
from finemoe.artifact.figures.panels import REFERENCE_LINE, in_order, legend_above, panel_title
from finemoe.artifact.plotting import log_ticks, provenance
from finemoe.artifact.verdicts.memory import REPORTED_AT_6_GB
from finemoe.simulation.cost import size_named
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NOTES = ("bands: 95 % over requests", "vertical: all of a model's experts", "hollow: the paper's gains at 6 GB")


def draw(summary: pd.DataFrame, gains: pd.DataFrame, testbed: str) -> "Figure":
    """Draw Figure 12, of every model its first dataset; the others are in the table.

    Args:
        summary: as `analysis.latency.means` by model, dataset, system and cache_limit_gb.
        gains: as `verdicts.gains.gains_table` by model, dataset and cache_limit_gb. testbed: for the line below the figure.
    """
    models = in_order(summary.model)
    first = {model: summary[summary.model == model].dataset.iloc[0] for model in models}
    fig, axes = grid(2, len(models), 2.6, 5, height_ratios=[1.5, 1], sharex="col")
    for upper, lower, model in zip(*axes, models, strict=True):
        part, gained = (table[(table.model == model) & (table.dataset == first[model])] for table in (summary, gains))
        size = size_named(model)
        in_bf16 = size.num_layers * size.num_experts * size.unpacked_bytes  # as they are simulated
        _draw_tpot(upper, part, in_bf16 / 1e9)
        _draw_gains(lower, gained[gained.quantity == "tpot_s"])
        upper.set_title(panel_title(model))
        _set_sizes((upper, lower), sorted(part.cache_limit_gb.unique()))
    axes[0][0].set_ylabel("TPOT (ms)")
    axes[1][0].set_ylabel("FineMoE's TPOT\nlower by (%)")
    legend_above(fig, axes[0], ncols=5)
    provenance(fig, "simulated", Testbed.load(testbed).title, f"dataset: {', '.join(in_order(first.values()))}", *_NOTES)
    return fig


def _draw_tpot(axis: "Axes", part: pd.DataFrame, experts_gb: float) -> None:
    for name in SHOWN_SYSTEMS:
        line = part[part.system == name]
        axis.plot(line.cache_limit_gb, 1e3 * line.tpot_s, **line_look(name))
        bounds = 1e3 * line.tpot_s_low, 1e3 * line.tpot_s_high
        axis.fill_between(line.cache_limit_gb, *bounds, alpha=0.2, color="grey", linewidth=0)
    axis.axvline(experts_gb, **REFERENCE_LINE)
    axis.set(xscale="log", yscale="log")
    log_ticks(axis.yaxis)


def _draw_gains(axis: "Axes", gains: pd.DataFrame) -> None:
    """By what share FineMoE's TPOT is below each baseline's; the paper's values hollow."""
    for baseline, line in gains.groupby("baseline", sort=False):
        look = line_look(str(baseline))
        axis.plot(line.cache_limit_gb, 100 * line.gain, **look)
        axis.fill_between(line.cache_limit_gb, 100 * line.low, 100 * line.high, alpha=0.2, color=look["color"], linewidth=0)
        hollow = look | {"markerfacecolor": "white", "linestyle": ""}
        axis.plot(gains.cache_limit_gb.min(), 100 * REPORTED_AT_6_GB[str(baseline)], **hollow)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="expert cache (GB, all devices)", ylim=(-45, 100))


def _set_sizes(axes: Sequence["Axes"], sizes: Sequence[float]) -> None:
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.xaxis.minorticks_off()
        axis.tick_params(labelbottom=True)
