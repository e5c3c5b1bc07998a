"""The figure of a comparison of systems: hit rate against expert memory, and the loads behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from finemoe.artifact.plotting import model_title, provenance, save_figure, series_styles, use_style
from finemoe.simulation.systems import SYSTEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOUNDS = ("on-demand (LRU)", "Belady (on demand)")  # lower and upper bound without prediction, drawn in black
_KINDS = {
    "demand_loads": ("on demand", "#444444", ""),
    "useful_loads": ("not demanded yet, used later", "#56B4E9", ""),
    "wasted_loads": ("never demanded, evicted", "#E69F00", "//////"),
    "unused_loads": ("never demanded, resident", "white", "......"),
}


@dataclass(frozen=True)
class _Quantity:
    """The quantity in the first panel: its columns (value, low, high), their scale, and the axis."""

    columns: tuple[str, str, str]
    scale: float
    label: str
    is_timed: bool


_HIT_RATE = _Quantity(("hit_rate", "low", "high"), 1.0, "expert hit rate", False)
_TPOT = _Quantity(("tpot_s", "tpot_low", "tpot_high"), 1e3, "TPOT, ms", True)


def save_comparison(rows: Sequence[dict[str, Any]], trace: str, details: Sequence[str], stem: Path, machine: str = "") -> None:
    """Draw the rows of `comparison_rows` to `stem`.pdf and .png, and write the table behind the figure to `stem`.csv.

    Args:
        rows: the rows; in virtual time they also need the columns of `time_columns`.
        trace: name of the trace, used as title.
        details: settings, for the line below the figure.
        stem: path without suffix.
        machine: title of the machine in virtual time.
    """
    table = pd.DataFrame(rows)
    save_figure(comparison_figure(table, trace, "", *details, machine=machine), table, stem)


def comparison_figure(table: pd.DataFrame, model: str, dataset: str, *details: str, machine: str = "") -> "Figure":
    """Draw the result of `analysis.system_tables.system_table`; a single memory size is drawn as bars instead of lines.

    Args:
        table: its rows.
        model, dataset: for the title.
        details: settings, for the line below the figure.
        machine: as in `save_comparison`.
    """
    import matplotlib.pyplot as plt

    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), width_ratios=[1.15, 1])
    quantity = _TPOT if machine else _HIT_RATE
    sizes = table.expert_memory.unique()
    if len(sizes) == 1:
        _draw_bars(axes[0], table, quantity)
        share = sizes[0]
    else:
        _draw_lines(axes[0], table, quantity)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        share = sizes[len(sizes) // 2] if machine else min(sizes, key=lambda value: abs(value - 0.25))
    axes[0].set_title(f"{model_title(model)}\n{dataset}", fontsize=8)
    _draw_loads(axes[1], table[table.expert_memory == share].set_index("system"))
    given = share if isinstance(share, str) else f"{share:.4g} of the experts"
    axes[1].set_title(f"loads at {given}", fontsize=8)
    executor = f"virtual time on {machine}" if machine else "instant link"
    provenance(
        fig, f"replay of recorded routing, {executor}", *details, f"{'bars' if len(sizes) == 1 else 'bands'}: 95 % over requests"
    )
    return fig


def _draw_lines(axis: "Axes", table: pd.DataFrame, quantity: "_Quantity") -> None:
    for name in dict.fromkeys(table.system):
        line = table[table.system == name].sort_values("expert_memory_bytes" if quantity.is_timed else "expert_memory")
        sizes = line.expert_memory_bytes / (1 << 30) if quantity.is_timed else line.expert_memory
        colour, marker, dash = _look(name)
        value, low, high = (quantity.scale * line[column] for column in quantity.columns)
        axis.plot(sizes, value, color=colour, marker=marker, linestyle=dash, label=name)
        axis.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel="expert memory, GiB" if quantity.is_timed else "expert memory (share of all experts)", ylabel=quantity.label)
    axis.set(yscale="log") if quantity.is_timed else axis.set(ylim=(0, 1.02))


def _draw_bars(axis: "Axes", table: pd.DataFrame, quantity: "_Quantity") -> None:
    """Draw a single memory size: a bar for each system, with its interval and its value."""
    value, low, high = (quantity.scale * table[column].to_numpy() for column in quantity.columns)
    errors = np.nan_to_num(np.stack([value - low, high - value]))  # a single request has no interval
    ends = value + errors[1]
    limit = 1.15 * max(ends[table.system != "DeepSpeed-Inference"], default=1.0) if quantity.is_timed else 1.12
    axis.barh(table.system, value, color=[_look(name)[0] for name in table.system], xerr=errors)
    for place, (number, end) in enumerate(zip(value, ends, strict=True)):
        if end > limit:
            axis.annotate(f"{number:.3g} →", (0.98 * limit, place), ha="right", va="center", fontsize=7, backgroundcolor="white")
        else:
            axis.annotate(f" {number:.3g}", (end, place), va="center", fontsize=7)
    axis.set(xlabel=quantity.label, xlim=(0, limit))
    axis.invert_yaxis()


def _look(name: str) -> tuple[Any, Any, str]:
    """Colour, marker and line of a system, the same in every figure; bounds are black."""
    if name not in SYSTEMS:
        return "black", "*", ":"
    look = series_styles(list(SYSTEMS))
    return ("black", look["markers"][name], "--") if name in _BOUNDS else (look["palette"][name], look["markers"][name], "-")


def _draw_loads(axis: "Axes", bars: pd.DataFrame) -> None:
    """Draw stacked bars; the bars of systems that load whole layers are cut off and labelled with their value."""
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
