"""Systems side by side: TTFT, TPOT, hit rate and FineMoE's gains, a column for each model (Figs. 10 and 13)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from finemoe.artifact.analysis.latency import BASELINES, BOUNDS, SHOWN_SYSTEMS
from finemoe.artifact.analysis.latency_figure import line_look, shown_name, system_looks
from finemoe.artifact.figures.grids import without_data
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title, whiskers
from finemoe.artifact.plotting import log_ticks, provenance, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

QUANTITIES = {"ttft_s": "TTFT (ms)", "tpot_s": "TPOT (ms)", "hit_rate": "expert hit rate"}
CUT = "↑: value of a bar that is cut"
_GAINS = {
    "ttft_s": ("TTFT lower", "#D55E00", "v"),
    "tpot_s": ("TPOT lower", "#0072B2", "s"),
    "hit_rate": ("hit rate higher", "#009E73", "^"),
}
_PANEL_INCHES, _ROW_INCHES = 2.6, 1.75
_FAR_APART = 2  # times: a system this far above all others is cut, since it would flatten their bars
_FAR_APART_ON_LOG = 20  # times, of points that would touch each other on a linear axis
_OTHER_NAMES = {"accelerate": "Accelerate (not ours)"}


def systems_figure(summary: pd.DataFrame, gains: pd.DataFrame, measured: pd.DataFrame, *settings: str) -> "Figure":
    """Draw every system's TTFT, TPOT and hit rate, and FineMoE's gains below.

    Args:
        summary: as `analysis.latency.means` by model, dataset and system.
        gains: as `verdicts.gains.gains_table`; the paper's are drawn hollow where they are not NaN.
        measured: TPOT on a real GPU as `machines.cells.tpot_on_gpu`, for one more row; nothing is added for an empty table.
        settings: for the line below the figure.
    """
    use_style()
    num_models, heights = summary.model.nunique(), [3 * _ROW_INCHES + 0.9, _ROW_INCHES + 0.6]
    heights += [_ROW_INCHES + 0.2] * (len(measured) > 0)
    fig = plt.figure(figsize=(_PANEL_INCHES * num_models, sum(heights)))
    parts: Any = fig.subfigures(len(heights), 1, height_ratios=heights)
    _draw_systems(parts[0], summary)
    _draw_gains(parts[1], gains, in_order(summary.model))
    if len(measured):
        _draw_measured(parts[2], measured)
    executor = f"simulated; last row: measured on {measured.machine.iloc[0]}" if len(measured) else "simulated"
    whiskers_are = ["whiskers: 95 % over requests" + ", in the last row extremes" * (len(measured) > 0)]
    provenance(fig, executor, *settings, *_pairs(summary), *whiskers_are, CUT)
    return fig


def _pairs(summary: pd.DataFrame) -> list[str]:
    """Which datasets the two marks of a gain are, in order; nothing where every model has one dataset."""
    found = {", ".join(in_order(part.dataset)) for _, part in summary.groupby("model") if part.dataset.nunique() > 1}
    return [f"marks in pairs: {datasets}" for datasets in sorted(found)]


def _draw_systems(fig: "SubFigure", summary: pd.DataFrame) -> None:
    models, systems = in_order(summary.model), [name for name in SHOWN_SYSTEMS if name in set(summary.system)]
    axes = fig.subplots(len(QUANTITIES), len(models), squeeze=False)
    for column, model in zip(axes.T, models, strict=True):
        _draw_column(column, summary[summary.model == model], systems)
        column[0].set_title(panel_title(model))
    for axis, label in zip(axes[:, 0], QUANTITIES.values(), strict=True):
        axis.set_ylabel(label)
    legend_above(fig, [axes[1][0]], ncols=5)


def _draw_column(axes: Sequence["Axes"], part: pd.DataFrame, systems: Sequence[str]) -> None:
    for axis, quantity in zip(axes, QUANTITIES, strict=True):
        if part[quantity].isna().all():
            without_data(axis, "no prefill recorded")
        else:
            _draw_bars(axis, part, quantity, systems)


def _draw_bars(axis: "Axes", part: pd.DataFrame, quantity: str, names: Sequence[str]) -> None:
    """A group of bars for each dataset, a bar for each system."""
    datasets, width = in_order(part.dataset), 0.84 / len(names)
    scale = 1e3 if quantity.endswith("_s") else 1.0
    for index, name in enumerate(names):
        bars = part[part.system == name].set_index("dataset").reindex(datasets)
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(datasets))]
        errors = whiskers(bars, quantity, f"{quantity}_low", f"{quantity}_high", scale)
        look = _bar_look(name) | {"error_kw": {"linewidth": 0.7}, "label": shown_name(name)}
        axis.bar(places, scale * bars[quantity], width, yerr=errors, **look)
    axis.set_xticks(range(len(datasets)), datasets)
    axis.margins(x=0.02)
    if quantity == "hit_rate":
        axis.set_ylim(0, 1.05)
    else:
        _cut_far_bars(axis, scale * part.groupby("system")[quantity].max())


def _bar_look(name: str) -> dict[str, Any]:
    look = system_looks()[name]
    alpha = 0.9 if name in BOUNDS else 1
    return {"color": look["color"], "hatch": look["hatch"], "edgecolor": "black", "linewidth": 0.4, "alpha": alpha}


def _cut_far_bars(axis: "Axes", tallest: "pd.Series[float]") -> None:
    """End the axis above the second system where the first is far above it, and write the values of what is cut on top."""
    ranked = tallest.sort_values()
    if len(ranked) < 2 or ranked.iloc[-1] < _FAR_APART * ranked.iloc[-2]:
        return
    limit = 1.35 * ranked.iloc[-2]
    axis.set_ylim(0, limit)
    for bar in axis.patches:
        if isinstance(bar, Rectangle) and bar.get_height() > limit:
            axis.text(bar.get_x() + bar.get_width(), limit, f" ↑ {bar.get_height():,.0f}", fontsize=6.5, va="top")


def _draw_gains(fig: "SubFigure", gains: pd.DataFrame, models: Sequence[str]) -> None:
    """By what share FineMoE's TTFT and TPOT are lower and its hit rate higher than each baseline's."""
    axes = fig.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        for index, quantity in enumerate(_GAINS):
            _draw_gain(axis, gains[(gains.model == model) & (gains.quantity == quantity)], quantity, 0.22 * (index - 1))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(BASELINES)), [name.replace("-", "-\n") for name in BASELINES], fontsize=6.5)
        axis.set_xlim(-0.5, len(BASELINES) - 0.5)
    axes[0].set_ylabel("FineMoE's gain (%)")
    hollow = plt.Line2D([], [], color="black", marker="s", markerfacecolor="white", linestyle="", markersize=4)
    legend_above(fig, axes, ncols=4, extra={"hollow: the paper's": hollow} if gains.reported.notna().any() else {})


def _draw_gain(axis: "Axes", part: pd.DataFrame, quantity: str, offset: float) -> None:
    label, colour, marker = _GAINS[quantity]
    look: dict[str, Any] = {"marker": marker, "linestyle": "", "markersize": 4, "color": colour}
    apart = 0.07 * (part.groupby("baseline", sort=False).cumcount().to_numpy() % 2)  # the datasets of a model
    places = np.array([BASELINES.index(name) for name in part.baseline], dtype=float) + offset + apart
    axis.errorbar(places, 100 * part.gain, yerr=whiskers(part, "gain", scale=100), elinewidth=0.8, label=label, **look)
    axis.plot(places, 100 * part.reported, markerfacecolor="white", **look)


def _draw_measured(fig: "SubFigure", measured: pd.DataFrame) -> None:
    """Draw TPOT on a real GPU with its extremes over requests, a panel for each model that was measured."""
    models = in_order(measured.model)
    axes = fig.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        part = measured[(measured.model == model) & measured.tpot_s.notna()]
        for place, (_, row) in enumerate(part.iterrows()):
            tpot_ms, errors = 1e3 * row.tpot_s, [[1e3 * (row.tpot_s - row.tpot_s_low)], [1e3 * (row.tpot_s_high - row.tpot_s)]]
            axis.errorbar(tpot_ms, place, xerr=errors, capsize=2, elinewidth=0.8, linestyle="", **_point_look(row.system))
            beyond = (1e3 * row.tpot_s_high, place)
            axis.annotate(f"{tpot_ms:,.0f}", beyond, (6, 0), textcoords="offset points", va="center", fontsize=6.5)
        axis.set_yticks(range(len(part)), [_OTHER_NAMES.get(name, name) for name in part.system], fontsize=7)
        axis.set(xlabel="measured TPOT (ms)", ylim=(len(part) - 0.5, -0.5))
        axis.set_title(f"{model} on {part.machine.iloc[0]}", fontsize=7)
        if part.tpot_s.max() > _FAR_APART_ON_LOG * part.tpot_s.min():
            axis.set_xscale("log")
            log_ticks(axis.xaxis)
        axis.margins(x=0.12)  # room for the values


def _point_look(name: str) -> dict[str, Any]:
    """A system's marker as in the other figures; black pentagons for systems that are not ours."""
    if name not in SHOWN_SYSTEMS:
        return {"color": "black", "marker": "p", "markersize": 7}
    look = line_look(name)
    return {"color": look["color"], "marker": look["marker"] or "D", "markersize": 5}
