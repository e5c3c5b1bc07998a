"""Figure 16b: TTFT and TPOT against the batch size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS, latency_table
from finemoe.artifact.analysis.latency_figure import line_look
from finemoe.artifact.figures.grids import grid
from finemoe.artifact.figures.panels import in_order, legend_above, percent
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import log_ticks, provenance
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTITIES = {"ttft_s": "TTFT (ms)", "tpot_s": "TPOT (ms)"}


def requests_in_batches(
    traces: Sequence[str],
    testbed: str,
    expert_memory: float,
    batch_sizes: Sequence[int],
    prefetch_distance: int,
    store_capacity: int,
    seed: int,
) -> pd.DataFrame:
    """Every system at every batch size, batch by batch: the rows of `latency_table`, by model, dataset and batch_size."""
    tables = []
    settings = (LATENCY_SYSTEMS, testbed, [expert_memory], prefetch_distance, store_capacity, seed)
    for model, dataset, trace in recordings(traces):
        for size in batch_sizes:
            table = latency_table(trace.split("history"), trace.split("served"), *settings, batch_size=size)
            tables.append(table.assign(model=model, dataset=dataset, batch_size=size))
    return pd.concat(tables, ignore_index=True)


def draw(summary: pd.DataFrame, testbed: str, expert_memory: float, prefetch_distance: int) -> "Figure":
    """Draw Figure 16b.

    Args:
        summary: as `analysis.latency.means` by model, dataset, batch_size and system.
        testbed, expert_memory, prefetch_distance: for the line below the figure.
    """
    datasets, sizes = in_order(summary.dataset), in_order(summary.batch_size)
    fig, axes = grid(2, len(datasets), 3.4, 4.6, sharex=True, sharey="row")
    for column, dataset in zip(axes.T, datasets, strict=True):
        for axis, quantity in zip(column, _QUANTITIES, strict=True):
            _draw_lines(axis, summary[summary.dataset == dataset], quantity)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.xaxis.minorticks_off()
        column[0].set_title(dataset)
        column[-1].set_xlabel("batch size (requests)")
    for axis, label in zip(axes[:, 0], _QUANTITIES.values(), strict=True):
        axis.set_ylabel(label)
    legend_above(fig, axes[0], ncols=4)
    settings = f"{percent(expert_memory)}, d = {prefetch_distance}"
    provenance(fig, "simulated", Testbed.load(testbed).title, settings, "bands: 95 % over batches")
    return fig


def _draw_lines(axis: "Axes", part: pd.DataFrame, quantity: str) -> None:
    for name, line in part.groupby("system", sort=False):
        look = line_look(str(name))
        axis.plot(line.batch_size, 1e3 * line[quantity], **look)
        bounds = 1e3 * line[f"{quantity}_low"], 1e3 * line[f"{quantity}_high"]
        axis.fill_between(line.batch_size, *bounds, color=look["color"], alpha=0.15, linewidth=0)
    axis.set(xscale="log", yscale="log")
    log_ticks(axis.yaxis)
