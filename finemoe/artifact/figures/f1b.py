"""Figure 1b: TPOT against the memory that a system takes, and what this memory consists of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.analysis.footprint import PARTS, footprint_table
from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS, load_tables, means
from finemoe.artifact.analysis.latency_figure import system_looks
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title, whiskers
from finemoe.artifact.plotting import log_ticks, provenance, use_style
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_IN_PARTS = ("FineMoE", "MoE-Infinity", "ProMoE", "No-offload")
_VISIBLE = 0.01  # share of the longest bar from which a part gets a key in the legend; smaller ones are written in numbers
# What bounds the others is grey or hollow, so that no system of the paper looks like it.
_BOUND_LOOKS: dict[str, dict[str, Any]] = {
    "on-demand (LRU)": {"color": "#777777", "linestyle": "--", "marker": "o"},
    "oracle": {"color": "black", "linestyle": ":", "marker": "s", "markerfacecolor": "white"},
    "No-offload": {"color": "black", "linestyle": "", "marker": "*", "markerfacecolor": "white", "markersize": 8},
}


def requests_of(tables: Sequence[str]) -> pd.DataFrame:
    """The requests that the paper's systems and their bounds served with a share of the experts in memory."""
    requests = load_tables(tables)
    return requests[requests.expert_memory.notna() & requests.system.isin(LATENCY_SYSTEMS)]


def footprints(requests: pd.DataFrame, store_capacity: int, context_tokens: int, seed: int = 0) -> pd.DataFrame:
    """Latency and memory of every system at every size of its expert cache.

    Args:
        requests: rows as `analysis.latency.latency_table` gives them, all of one testbed.
        store_capacity: C, maps. context_tokens: tokens of one request whose keys and values count.
    Returns:
        Rows (model, dataset, system, expert_memory) with the columns of `means` and of `footprint_table`.
    """
    summary = means(requests, ["model", "dataset", "system", "expert_memory"], seed)
    return summary.join(footprint_table(summary, requests.testbed.iloc[0], store_capacity, context_tokens))


def draw(table: pd.DataFrame, expert_memory: float, testbed: str, store_capacity: int, context_tokens: int) -> "Figure":
    """TPOT against memory above, memory in parts below, one column per model, for the first dataset.

    Args:
        table: as `footprints` returns it. expert_memory: the share of all routed experts whose memory is drawn in parts.
        testbed, store_capacity, context_tokens: for the line below the figure.
    """
    use_style()
    models, dataset = in_order(table.model), table.dataset.iloc[0]
    fig, axes = plt.subplots(2, len(models), figsize=(3 * len(models), 5.2), height_ratios=[1.5, 1], squeeze=False)
    for above, below, model in zip(*axes, models, strict=True):
        part = table[(table.dataset == dataset) & (table.model == model)]
        bars = part[part.expert_memory == expert_memory].set_index("system").reindex(list(SHOWN_IN_PARTS))
        _draw_latency(above, part)
        _draw_parts(below, bars)
        for axis in (above, below):
            axis.set_xlim(0, 1.06 * bars.total_gb.max())
        below.set_xlabel("memory by part (GB)")
    _label(axes, models)
    legend_above(fig, axes[:, 0], ncols=4)
    of_parts = f"lower row: {expert_memory:.0%} of the experts, No-offload all"
    details = (f"dataset: {dataset}", of_parts, f"{context_tokens} tokens of context, C = {store_capacity}")
    provenance(fig, "simulated", Testbed.load(testbed).title, *details, "whiskers: 95 % over requests, mostly within the marks")
    return fig


def _label(axes: Any, models: Sequence[str]) -> None:
    for axis, model in zip(axes[0], models, strict=True):
        axis.set_title(panel_title(model))
    axes[0][0].set_ylabel("TPOT (ms)")
    for axis in axes[1][1:]:
        axis.set_yticklabels([])


def _draw_latency(axis: "Axes", part: pd.DataFrame) -> None:
    """One line per system through the sizes of its expert cache."""
    looks = system_looks()
    for name in LATENCY_SYSTEMS:
        line = part[part.system == name].drop_duplicates("total_gb")
        look = _BOUND_LOOKS.get(name) or {"color": looks[name]["color"], "marker": looks[name]["marker"]}
        errors = [1e3 * length for length in whiskers(line, "tpot_s", "tpot_s_low", "tpot_s_high")]
        axis.errorbar(line.total_gb, 1e3 * line.tpot_s, errors, linewidth=1, elinewidth=0.8, label=name, **look)
    axis.set(yscale="log", xlabel="memory in total (GB)")
    log_ticks(axis.yaxis)


def _draw_parts(axis: "Axes", bars: pd.DataFrame) -> None:
    """Stacked bars; the parts too small to be seen in numbers next to them."""
    left = pd.Series(0.0, index=bars.index)
    for column, (name, colour, hatch) in PARTS.items():
        label = name if bars[column].max() > _VISIBLE * bars.total_gb.max() else "_too small to be seen"
        axis.barh(bars.index, bars[column], left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=label)
        left = left + bars[column]
    widest = bars.total_gb.max()
    for place, row in enumerate(bars.itertuples()):
        is_inside = row.total_gb > 0.5 * widest  # there is no room next to a long bar
        where = ((0 if is_inside else row.total_gb) + 0.02 * widest, place)
        axis.annotate(_small_parts(row), where, va="center", fontsize=6, color="white" if is_inside else "black")
    axis.grid(visible=False)  # its lines would cross the numbers
    axis.invert_yaxis()


def _small_parts(row: Any) -> str:
    return f"keys and values {1e3 * row.kv_cache_gb:.0f} MB,\nhost memory {1e3 * row.memory_of_past_gb:.1f} MB"
