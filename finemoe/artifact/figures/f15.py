"""Figure 15: TTFT and TPOT against the prefetch distance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.analysis.latency import distance_table
from finemoe.artifact.analysis.latency_figure import line_look
from finemoe.artifact.figures.grids import grid, key, without_data
from finemoe.artifact.figures.panels import REFERENCE_LINE, in_order, legend_above, panel_title, percent
from finemoe.artifact.figures.recordings import table_of
from finemoe.artifact.plotting import MARKERS, provenance
from finemoe.artifact.verdicts.distance import REPORTED_DISTANCES
from finemoe.paths import ROOT
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTITIES = {"ttft_s": "TTFT (ms)", "tpot_s": "TPOT (ms)"}
_NOTES = ("vertical: the paper's minimum", "bands: 95 % over requests")


def requests_at_distances(
    traces: Sequence[str], real: str, testbed: str, expert_memory: float, max_distance: int, store_capacity: int, seed: int
) -> pd.DataFrame:
    """FineMoE, the oracle and loading on demand at d = 1 to `max_distance`.

    Args:
        real: path of the table of gpt-oss-20b, from the repository root; it has rows for the default settings only.
        store_capacity: C, in maps. seed: for the bootstrap.
    Returns:
        The rows of `distance_table`, one per request, by model and dataset.
    """
    settings = (testbed, expert_memory, range(1, max_distance + 1), store_capacity, seed)
    requests = table_of(traces, lambda trace: distance_table(trace.split("history"), trace.split("served"), *settings))
    known = pd.read_csv(ROOT / real)
    known = known[(known.testbed == testbed) & (known.expert_memory == expert_memory)]
    return pd.concat([requests, known], ignore_index=True)


def draw(summary: pd.DataFrame, testbed: str, expert_memory: float) -> "Figure":
    """Draw Figure 15.

    Args:
        summary: as `analysis.latency.means` by model, dataset, system and prefetch_distance.
        testbed, expert_memory: for the line below the figure.
    """
    models, markers = in_order(summary.model), dict(zip(in_order(summary.dataset), MARKERS, strict=False))
    fig, axes = grid(2, len(models), 2.6, 4.6, sharex=True)
    for column, model in zip(axes.T, models, strict=True):
        for axis, quantity in zip(column, _QUANTITIES, strict=True):
            _draw_lines(axis, summary[summary.model == model], quantity, markers)
        column[0].set_title(panel_title(model))
        column[-1].set(xlabel="prefetch distance d (layers)", xticks=in_order(summary.prefetch_distance))
    for axis, label in zip(axes[:, 0], _QUANTITIES.values(), strict=True):
        axis.set_ylabel(label)
    systems = [key(name, line_look(name) | {"marker": ""}) for name in in_order(summary.system)]
    datasets = [key(dataset, {"marker": marker}) for dataset, marker in markers.items()]
    legend_above(fig, [], ncols=len(systems) + len(datasets), extra=dict(systems + datasets))
    provenance(fig, "simulated", Testbed.load(testbed).title, percent(expert_memory), *_NOTES)
    return fig


def _draw_lines(axis: "Axes", part: pd.DataFrame, quantity: str, markers: dict[str, str]) -> None:
    if part[quantity].isna().all():
        without_data(axis, "no prefill recorded")
        return
    for (dataset, name), line in part.groupby(["dataset", "system"], sort=False):
        look = line_look(str(name)) | {"marker": markers[str(dataset)]}
        axis.plot(line.prefetch_distance, 1e3 * line[quantity], **look)
        bounds = 1e3 * line[f"{quantity}_low"], 1e3 * line[f"{quantity}_high"]
        axis.fill_between(line.prefetch_distance, *bounds, color=look["color"], alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)
    if (reported := REPORTED_DISTANCES.get(part.model.iloc[0])) is not None:
        axis.axvline(reported, **REFERENCE_LINE)
