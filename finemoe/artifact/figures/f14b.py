"""Figure 14b: hit rate under every eviction rule, with FineMoE's prefetches and on demand."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.analysis.system_tables import EVICTIONS, eviction_systems, system_table
from finemoe.artifact.figures.grids import grid, key, marks, replay_provenance
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title, whiskers
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import RULE_NAMES, series_styles
from finemoe.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ON_DEMAND = "on demand"


def eviction_table(
    traces: Sequence[str], real: str, expert_memory: float, prefetch_distances: Sequence[int], store_capacity: int, seed: int
) -> pd.DataFrame:
    """Replay every rule on every trace, with and without FineMoE's prefetches.

    Args:
        real: path of the table of gpt-oss-20b, from the repository root. prefetch_distances: d of each trace, in layers.
        store_capacity: C, in maps. seed: for the bootstrap.
    Returns:
        Rows of `system_table` by model, dataset, rule and loading ("prefetching" or "on demand").
    """
    tables = []
    for (model, dataset, trace), distance in zip(recordings(traces), prefetch_distances, strict=True):
        settings = ([expert_memory], distance, store_capacity, seed)
        found = system_table(trace.split("history"), trace.split("served"), eviction_systems(EVICTIONS), *settings)
        tables.append(found.assign(model=model, dataset=dataset))
    table = pd.concat([*tables, pd.read_csv(ROOT / real)], ignore_index=True)
    table[["rule", "loading"]] = table.system.str.split(", ", expand=True)
    return table.drop(columns="system")


def draw(table: pd.DataFrame, expert_memory: float, prefetch_distances: Sequence[int], store_capacity: int) -> "Figure":
    """Draw Figure 14b.

    Args:
        table: as `eviction_table` returns it. expert_memory, prefetch_distances, store_capacity: for the line below the figure.
    """
    models = in_order(table.model)
    fig, axes = grid(1, len(models), 2.35, 3.2, sharey=True)
    look = series_styles(in_order(table.dataset))
    for axis, model in zip(axes[0], models, strict=True):
        _draw_hit_rates(axis, table[table.model == model], look)
        axis.set(title=panel_title(model), xlim=(0.2, 1), xlabel="expert hit rate")
        axis.set(yticks=range(len(EVICTIONS)), ylim=(len(EVICTIONS) - 0.5, -0.5))
    axes[0][0].set_yticklabels([RULE_NAMES[rule] for rule in EVICTIONS])
    _add_legend(fig, look)
    replay_provenance(fig, expert_memory, prefetch_distances, store_capacity)
    return fig


def _draw_hit_rates(axis: "Axes", part: pd.DataFrame, look: dict[str, Any]) -> None:
    datasets = in_order(part.dataset)
    for (dataset, loading), points in part.groupby(["dataset", "loading"], sort=False):
        offset = 0.18 * (2 * datasets.index(dataset) - 1) * (len(datasets) > 1)
        heights = [EVICTIONS.index(rule) + offset for rule in points.rule]
        colour = look["palette"][dataset]
        of_series = {"fmt": look["markers"][dataset], "color": colour, "capsize": 2}
        of_series["markerfacecolor"] = "white" if loading == _ON_DEMAND else colour
        axis.errorbar(points.hit_rate, heights, xerr=whiskers(points, "hit_rate"), **of_series)


def _add_legend(fig: "Figure", look: dict[str, Any]) -> None:
    datasets = marks(look, str)
    loading = [
        key("filled: with FineMoE's prefetches", {"marker": "o"}),
        key("hollow: on demand", {"marker": "o", "markerfacecolor": "white"}),
    ]
    legend_above(fig, [], ncols=len(datasets) + len(loading), extra=dict(datasets + loading))
