"""Figure 16a: similarity of the best match against the store's capacity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.analysis.capacity import similarity_table
from finemoe.artifact.figures.grids import distances_in_words, grid, key, marks
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import provenance, series_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NOTES = ("dotted: the paper's C = 1000", "bands: 95 % over requests")
_KNEE = 1000  # maps, the paper's capacity
_DASHES = ("-", "--", ":")  # of the datasets


def similarities(traces: Sequence[str], capacities: Sequence[int], prefetch_distances: Sequence[int], seed: int) -> pd.DataFrame:
    """Similarity of the best match at every capacity: the rows of `similarity_table`, by model and dataset."""
    tables = [
        similarity_table(trace.split("history"), trace.split("served"), capacities, distance, seed).assign(
            model=model, dataset=dataset
        )
        for (model, dataset, trace), distance in zip(recordings(traces), prefetch_distances, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def draw(similarity: pd.DataFrame, prefetch_distances: Sequence[int]) -> "Figure":
    """Draw Figure 16a.

    Args:
        similarity: as `similarities` returns it. prefetch_distances: for the line below the figure.
    """
    models, dashes = in_order(similarity.model), dict(zip(in_order(similarity.dataset), _DASHES, strict=False))
    fig, axes = grid(1, len(models), 2.9, 2.9, sharey=True)
    look = series_styles(["semantic", "trajectory"])
    for axis, model in zip(axes[0], models, strict=True):
        for (search, dataset), line in similarity[similarity.model == model].groupby(["search", "dataset"], sort=False):
            of_search = {"color": look["palette"][search], "marker": look["markers"][search]}
            axis.plot(line.capacity, line.similarity, linestyle=dashes[str(dataset)], **of_search)
            axis.fill_between(line.capacity, line.low, line.high, color=of_search["color"], alpha=0.2, linewidth=0)
        axis.set_title(panel_title(model))
        _set_capacities(axis, in_order(similarity.capacity))
    axes[0][0].set_ylabel("cosine of the best match")
    searches = marks(look, lambda name: f"{name} search")
    datasets = [key(dataset, {"linestyle": dash}) for dataset, dash in dashes.items()]
    legend_above(fig, [], ncols=len(searches) + len(datasets), extra=dict(searches + datasets))
    provenance(fig, "recorded routing", distances_in_words(prefetch_distances), *_NOTES)
    return fig


def _set_capacities(axis: "Axes", capacities: Sequence[int]) -> None:
    axis.axvline(_KNEE, color="#888888", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="store capacity C (maps)")
    axis.set_xticks(capacities, [f"{capacity:g}" for capacity in capacities], fontsize=7)
    axis.minorticks_off()
