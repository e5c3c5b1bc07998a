"""The picture of a comparison of systems: hit rate against expert memory, and beside it what was loaded for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.plotting import model_title, provenance, save_figure, series_styles, use_style
from finemoe.simulation.systems import SYSTEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOUNDS = ("on-demand (LRU)", "Belady (on demand)")  # the floor and the ceiling without prediction, drawn black
_KINDS = {
    "demand_loads": ("on demand", "#444444", ""),
    "useful_loads": ("not demanded yet, used later", "#56B4E9", ""),
    "wasted_loads": ("never demanded, evicted", "#E69F00", "//////"),
    "unused_loads": ("never demanded, resident", "white", "......"),
}


def save_comparison(rows: Sequence[dict[str, Any]], trace: str, details: Sequence[str], stem: Path) -> None:
    """Draw the rows of `comparison_rows` to `stem`.pdf and .png, with the table behind the picture in .csv.

    Args:
        trace: its name, the title. details: settings, for the line below the figure.
    """
    table = pd.DataFrame(rows)
    save_figure(comparison_figure(table, trace, "", *details), table, stem)


def comparison_figure(table: pd.DataFrame, model: str, dataset: str, *details: str) -> "Figure":
    """Draw what `analysis.system_tables.system_table` found.

    Args:
        table: its rows. model, dataset: for the title. details: settings, for the line below the figure.
    """
    import matplotlib.pyplot as plt

    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), width_ratios=[1.15, 1])
    _draw_hit_rates(axes[0], table)
    axes[0].set_title(f"{model_title(model)}\n{dataset}", fontsize=8)
    share = min(table.expert_memory.unique(), key=lambda value: abs(value - 0.25))
    _draw_loads(axes[1], table[table.expert_memory == share].set_index("system"))
    axes[1].set_title(f"loads at {share:.4g} of the experts", fontsize=8)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    provenance(fig, "replay of recorded routing, instant link", *details, "bands: 95 % over requests")
    return fig


def _draw_hit_rates(axis: "Axes", table: pd.DataFrame) -> None:
    look = series_styles(list(SYSTEMS))  # a system looks alike in every figure
    for name in dict.fromkeys(table.system):
        line = table[table.system == name]
        colour, dash = ("black", "--") if name in _BOUNDS else (look["palette"][name], "-")
        axis.plot(line.expert_memory, line.hit_rate, color=colour, marker=look["markers"][name], linestyle=dash, label=name)
        axis.fill_between(line.expert_memory, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel="expert memory (share of all experts)", ylabel="expert hit rate", ylim=(0, 1.02))


def _draw_loads(axis: "Axes", bars: pd.DataFrame) -> None:
    """Stacked bars; whoever loads whole layers is cut off and named in numbers."""
    left = pd.Series(0.0, index=bars.index)
    for column, (label, colour, hatch) in _KINDS.items():
        axis.barh(bars.index, bars[column], left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=label)
        left += bars[column]
    limit = 1.15 * max(1.0, float(left.drop("DeepSpeed-Inference", errors="ignore").max()))
    for place, total in enumerate(left):
        if total > limit:
            axis.annotate(f"{total:.1f} →", (0.98 * limit, place), ha="right", va="center", fontsize=7, backgroundcolor="white")
    axis.set(xlim=(0, limit), xlabel="experts loaded per expert demanded")
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.21), ncols=2, fontsize=7)
