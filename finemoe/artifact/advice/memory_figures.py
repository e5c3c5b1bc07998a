"""Figures over expert memory: time per token, hit rate, and the benefit of prefetching."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finemoe.advice.result import Advice
from finemoe.advice.systems import BELADY, ON_DEMAND, ORACLE, PREFETCHING, RESIDENT
from finemoe.artifact.advice.looks import rule_look, system_look
from finemoe.artifact.advice.memory_axis import MemoryAxis, sizes_in_view
from finemoe.artifact.advice.tables import column, has_interval, names_in, rows_of
from finemoe.artifact.plotting import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINEAR_UP_TO = 3.0  # maximum over minimum; above it, a logarithmic axis is needed to show small differences
_NUM_MARKERS = 9
_STAR: dict[str, Any] = {"marker": "*", "markersize": 12, "linestyle": "", "markeredgecolor": "black", "zorder": 5}
Row = Mapping[str, Any]


def time_figure(advice: Advice) -> "Figure":
    """Time per token: on-demand systems on the left, prefetching systems on the right, limits in both."""
    import matplotlib.pyplot as plt

    groups = {"loading on demand": [*ON_DEMAND, BELADY], "prefetching": list(PREFETCHING)}
    timed = names_in(advice.times, "system")
    shown = {title: [name for name in names if name in timed] for title, names in groups.items()}
    shown = {title: names for title, names in shown.items() if names}
    fig, axes = plt.subplots(1, len(shown), figsize=(7.4, 4.0), sharey=True, squeeze=False)
    for axis, (title, names) in zip(axes[0], shown.items(), strict=True):
        draw_times(axis, advice, [*names, *(name for name in (ORACLE, RESIDENT) if name in timed)])
        axis.set_title(title)
    finish_times(list(axes[0]), advice, timed)
    for axis in axes[0]:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=7)
    return fig


def draw_times(axis: "Axes", advice: Advice, names: Sequence[str], in_percent: bool = False) -> None:
    """Draw the time per token of some systems, the recommendation if it is one of them, and the sizes that do not fit."""
    memory = MemoryAxis.of(advice, in_percent)
    for name in names:
        rows, look = rows_of(advice.times, system=name), system_look(name)
        if name == RESIDENT:  # has a single size
            axis.axhline(rows[0]["tpot_s"] * 1e3, **look, linewidth=0.9)
        else:
            _draw_system(axis, rows, look, memory)
    chosen = advice.recommendation
    if chosen is not None and chosen["system"] in names:
        colour = system_look(chosen["system"])["color"]
        place = (chosen["slots"] * memory.per_slot, chosen["row"]["tpot_s"] * 1e3)
        axis.plot(*place, color=colour, label="recommended", **_STAR)
    memory.apply(axis, sizes_in_view(advice))
    memory.shade(axis, advice)


def _draw_system(axis: "Axes", rows: Sequence[Row], look: dict[str, Any], memory: MemoryAxis) -> None:
    """A line over all sizes with its 95 % interval."""
    ordered = sorted(rows, key=lambda row: row["slots"])
    places = column(ordered, "slots", memory.per_slot)
    if len(rows) == 1 and not look["marker"]:
        look = look | {"marker": "_", "markersize": 10}
    axis.plot(places, column(ordered, "tpot_s", 1e3), **look)
    draw_band(axis, places, ordered, look["color"], 1e3)


def draw_band(axis: "Axes", places: Sequence[float], rows: Sequence[Row], colour: str, times: float = 1.0) -> None:
    """Draw the 95 % interval around a line, if there is one."""
    if all(has_interval(row) for row in rows):
        axis.fill_between(places, column(rows, "low", times), column(rows, "high", times), color=colour, alpha=0.18, linewidth=0)


def finish_times(axes: Sequence["Axes"], advice: Advice, names: Sequence[str], in_percent: bool = False) -> None:
    """Scale and label axes that `draw_times` drew these systems on and that share the vertical axis, and mark cliff and knee."""
    values = [1e3 * row["tpot_s"] for row in advice.times if row["system"] in names]
    axes[0].set_ylabel("time per token (ms)")
    if max(values) > _LINEAR_UP_TO * min(values):
        axes[0].set_yscale("log")
        log_ticks(axes[0].yaxis)
    MemoryAxis.of(advice, in_percent).mark(axes, advice)


def hit_rate_figure(advice: Advice) -> "Figure":
    """Hit rate of every eviction rule when experts are loaded on demand."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.4, 3.6))
    draw_hit_rates(axis, advice, names_in(advice.hit_rates, "rule"))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig


def draw_hit_rates(axis: "Axes", advice: Advice, rules: Iterable[str], in_percent: bool = False) -> None:
    """Draw the hit rate of some rules, with cliff and knee."""
    memory, (least, most) = MemoryAxis.of(advice, in_percent), sizes_in_view(advice)
    least = max(1, min(least, advice.cliff["cycle"] // 2))
    for place, rule in enumerate(rules):
        rows = [row for row in rows_of(advice.hit_rates, rule=rule) if least <= row["slots"] <= most]
        every = max(1, len(rows) // _NUM_MARKERS)
        look, places = rule_look(rule), column(rows, "slots", memory.per_slot)
        axis.plot(places, column(rows, "hit_rate", 100), markevery=(place % every, every), **look)
        draw_band(axis, places, rows, look["color"], 100)
    memory.apply(axis, (least, most))
    memory.shade(axis, advice)
    axis.set(ylabel="hit rate (%)", ylim=(0, 100), yticks=range(0, 101, 20))
    memory.mark([axis], advice)


def prefetching_figure(advice: Advice) -> "Figure":
    """Time of the fastest prefetching system over that of the fastest on-demand system, at every size."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.4, 3.1))
    draw_prefetching(axis, advice)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig


def draw_prefetching(axis: "Axes", advice: Advice, in_percent: bool = False) -> None:
    """Draw the ratio and its interval; the marker names the prefetching system, and is filled if the interval excludes 1."""
    memory, rows = MemoryAxis.of(advice, in_percent), advice.prefetching
    places = column(rows, "slots", memory.per_slot)
    axis.axhline(1, color="black", linewidth=0.9, zorder=1)
    axis.plot(places, column(rows, "ratio"), color="#555555", linewidth=1, zorder=2)
    draw_band(axis, places, rows, "#555555")
    for name in names_in(rows, "prefetching"):
        look = system_look(name) | {"linestyle": "", "zorder": 3}
        sure = [row for row in rows_of(rows, prefetching=name) if row["verdict"] in ("pays", "costs")]
        unsure = [row for row in rows_of(rows, prefetching=name) if row not in sure]
        axis.plot(column(sure, "slots", memory.per_slot), column(sure, "ratio"), **look)
        hollow = look | {"markerfacecolor": "white", "label": "_hollow"}
        axis.plot(column(unsure, "slots", memory.per_slot), column(unsure, "ratio"), **hollow)
    if any(row["verdict"] not in ("pays", "costs") for row in rows):
        axis.plot([], [], linestyle="", marker="o", color="#555555", markerfacecolor="white", label="difference is not shown")
    memory.apply(axis, sizes_in_view(advice))
    memory.shade(axis, advice)
    axis.set_ylabel("time, prefetching / on demand")
    memory.mark([axis], advice)
