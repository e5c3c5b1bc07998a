"""TPOT predicted against TPOT measured (notebooks/studies/validate_simulator.ipynb)."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.machines.cells import SYSTEM_NAMES
from finemoe.artifact.pipeline.noise import NOT_DECIDED, OUTSIDE, WITHIN, in_words
from finemoe.artifact.plotting import log_ticks, model_title, provenance, series_styles, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(table: pd.DataFrame, num_served: int, num_tokens: int) -> "Figure":
    """Predicted by measured TPOT, one panel for each model; cells that are not decided are hollow.

    Args:
        table: rows of `pipeline.noise.judged_predictions` by model, policy, expert_memory and load_ms, with the machine.
        num_served, num_tokens: requests behind a point and tokens generated for each, for the line below the figure.
    """
    import matplotlib.pyplot as plt

    use_style()
    names = list(dict.fromkeys(table.model))
    fig, axes = plt.subplots(1, len(names), figsize=(max(5.4, 2.7 * len(names)), 3.1), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        _draw_model(axis, table[table.model == name], list(dict.fromkeys(table.policy)))
        axis.set_title(model_title(name).replace(" (", "\n("))
    axes[0][0].set_ylabel("predicted TPOT (ms)")
    hollow = plt.Line2D([], [], linestyle="", marker="o", color="black", fillstyle="none", label=f"hollow: {NOT_DECIDED}")
    handles = [*axes[0][0].get_legend_handles_labels()[0], hollow]
    title = in_words(table, WITHIN, OUTSIDE).replace(" (", "\n(")
    fig.legend(handles=handles, loc="outside upper center", ncols=3, title=title)
    points = f"requests a point: {num_served}, of {num_tokens} tokens, medians of {table.num_rounds.max():g} rounds"
    provenance(fig, "paced against simulated", table.machine.iloc[0], points, "grey: within 10 %")
    return fig


def largest_error(table: pd.DataFrame) -> str:
    """The cell whose prediction is farthest off, in words."""
    worst = table.iloc[int(table.error.abs().argmax())]
    cell = f"{worst.model}, {worst.policy}, {worst.expert_memory:.0%}, {worst.load_ms:g} ms"
    return f"largest error: {worst.error:+.1%} ({cell}; {worst.verdict}, noise {worst.noise:.0%})"


def _draw_model(axis: "Axes", table: pd.DataFrame, policies: list[str]) -> None:
    look, both = series_styles(policies), 1e3 * table[["measured_tpot_s", "predicted_tpot_s"]]
    limits = 0.8 * both.min().min(), 1.25 * both.max().max()
    axis.plot(limits, limits, color="black", linewidth=0.8)
    axis.fill_between(limits, [0.9 * x for x in limits], [1.1 * x for x in limits], color="#CCCCCC", alpha=0.5, linewidth=0)
    for policy in policies:
        points = table[table.policy == policy]
        is_open = points.verdict == NOT_DECIDED
        marks: dict[str, Any] = {"linestyle": "", "marker": look["markers"][policy], "color": look["palette"][policy]}
        _draw_points(axis, points[~is_open], label=SYSTEM_NAMES[policy], fillstyle="full", **marks)
        _draw_points(axis, points[is_open], fillstyle="none", **marks)
    axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="measured TPOT (ms)")
    log_ticks(axis.xaxis)
    log_ticks(axis.yaxis)


def _draw_points(axis: "Axes", points: pd.DataFrame, **look: Any) -> None:
    axis.plot(1e3 * points.measured_tpot_s, 1e3 * points.predicted_tpot_s, **look)
