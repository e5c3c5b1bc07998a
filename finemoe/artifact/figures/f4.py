"""Figure 4: how well fine and coarse statistics, and the predictor of every system, predict experts some layers ahead."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.analysis.prediction import METHODS, prediction_table
from finemoe.artifact.analysis.system_tables import system_table
from finemoe.artifact.figures.panels import legend_above
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style
from finemoe.paths import ROOT
from finemoe.simulation.systems import chosen_systems
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the grey lines show: an expert cache without any prediction.
CACHES = {"on-demand (LRU)": "--", "Belady (on demand)": ":"}


def predictions(
    traces: Sequence[str],
    distances: Sequence[int],
    store_capacity: int,
    expert_memory: float,
    gpt_oss_table: str,
    gpt_oss_systems: str,
    seed: int = 0,
) -> pd.DataFrame:
    """Hit rates of every method at every prefetch distance, and of the caches without prediction.

    Args:
        traces: one file per model and dataset. distances: in layers. store_capacity: C, maps.
        expert_memory: share of all routed experts in the caches without prediction.
        gpt_oss_table, gpt_oss_systems: files with the same rows for real routing, which come first.
    Returns:
        Rows (distance, hit_rate, low, high, method, model, dataset); a cache has its system's name as method, and no distance.
    """
    predicted, cached = [pd.read_csv(ROOT / gpt_oss_table)], [_caches_in(gpt_oss_systems, expert_memory)]
    for model, dataset, trace in recordings(traces):
        history, served = trace.split("history"), trace.split("served")
        names = {"model": model, "dataset": dataset}
        predicted.append(prediction_table(history, served, list(distances), store_capacity, seed).assign(**names))
        cached.append(_caches_of(history, served, expert_memory, seed).assign(**names))
    flat = pd.concat(cached, ignore_index=True).rename(columns={"system": "method"})
    return pd.concat([*predicted, flat[["model", "dataset", "method", "hit_rate"]]], ignore_index=True)


def _caches_in(path: str, expert_memory: float) -> pd.DataFrame:
    """Empty where the file has no row of that size."""
    table = pd.read_csv(ROOT / path)
    return table[table.system.isin(list(CACHES)) & (table.expert_memory == expert_memory)]


def _caches_of(history: RoutingTrace, served: RoutingTrace, expert_memory: float, seed: int) -> pd.DataFrame:
    return system_table(history, served.decode(), chosen_systems(list(CACHES)), [expert_memory], 1, seed=seed)


def draw(table: pd.DataFrame, store_capacity: int, expert_memory: float) -> "Figure":
    """Hit rate against prefetch distance, one panel per model and dataset, real routing last.

    Args:
        table: as `predictions` returns it. store_capacity, expert_memory: for the line below the figure and the legend.
    """
    use_style()
    first, *others = table.groupby(["model", "dataset"], sort=False)
    panels: list[Any] = [*others, first]
    fig, axes = plt.subplots(2, -(-len(panels) // 2), figsize=(9.6, 5.4), sharex=True, sharey=True, squeeze=False)
    for axis, ((model, dataset), part) in zip(axes.T.flat, panels, strict=False):
        _draw_methods(axis, part)
        _draw_caches(axis, part, f"{expert_memory:.0%} of the experts")
        axis.set_title(f"{model_title(model)}\n{dataset}", fontsize=7.5)
        axis.set(ylim=(0, 1), xlabel="prefetch distance (layers)")
        axis.tick_params(labelbottom=True)
    for axis in axes.T.flat[len(panels) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("hit rate at K experts")
    legend_above(fig, axes.flat, ncols=2)
    same = "K experts per token and layer for every method"
    provenance(fig, "recorded routing", f"C = {store_capacity} (real panel: 1000)", same, "bands: 95 % over requests")
    return fig


def _draw_methods(axis: "Axes", part: pd.DataFrame) -> None:
    styles = series_styles(list(METHODS))
    for method in METHODS:
        line = part[part.method == method]
        if line.empty:
            continue  # routers ahead are not in every trace
        colour = styles["palette"][method]
        axis.plot(line.distance, line.hit_rate, color=colour, marker=styles["markers"][method], label=METHODS[method])
        axis.fill_between(line.distance, line.low, line.high, color=colour, alpha=0.25, linewidth=0)


def _draw_caches(axis: "Axes", part: pd.DataFrame, size: str) -> None:
    look: dict[str, Any] = {"color": "#555555", "linewidth": 1, "zorder": 1}
    for system, dash in CACHES.items():
        for hit_rate in part[part.method == system].hit_rate:
            axis.axhline(hit_rate, linestyle=dash, label=f"no prediction: {system}, {size}", **look)
