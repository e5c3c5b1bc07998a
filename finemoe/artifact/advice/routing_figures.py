"""Figures of the routing itself (predictability, concentration, working set, reuse) and of what changes the advice."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finemoe.advice.predictability import CHANCE
from finemoe.advice.result import Advice
from finemoe.advice.systems import PREFETCHING
from finemoe.artifact.advice.looks import system_look
from finemoe.artifact.advice.tables import column, has_interval, names_in, rows_of
from finemoe.artifact.plotting import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIMPLE: dict[str, Any] = {"color": "#444444", "marker": "o"}
_LINEAR_UP_TO = 5.0  # maximum over minimum
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#8C8C8C"
Row = Mapping[str, Any]


def recall_figure(advice: Advice) -> "Figure":
    """Recall of every predictor; on the right by distance, for predictors evaluated at several distances."""
    import matplotlib.pyplot as plt

    several = _asked_at_several(advice)
    ratios = [1.5, 1] if several else [1]
    fig, axes = plt.subplots(1, len(ratios), figsize=(7.4, 0.9 + 0.22 * len(_last(advice))), width_ratios=ratios, squeeze=False)
    draw_recalls(axes[0][0], advice)
    for axis in axes[0][1:]:
        draw_distances(axis, advice, several)
    return fig


def draw_recalls(axis: "Axes", advice: Advice) -> None:
    """Draw a row for every predictor, the best at the top; with several distances, the nearest one is shown."""
    rows = sorted(_last(advice), key=lambda row: row["recall"], reverse=True)
    for place, row in enumerate(rows):
        look = predictor_look(row["predictor"]) | {"linestyle": ""}
        axis.errorbar(100 * row["recall"], [place], xerr=_whiskers(row), capsize=2, elinewidth=1, **look)
    axis.axvline(100 * chance_of(advice), color="black", linewidth=0.8, linestyle=":", zorder=1)
    axis.set_yticks(range(len(rows)), [_named(row) for row in rows])
    axis.set(xlabel="recall (% of the experts used)", xlim=(0, min(100.0, 112 * max(column(rows, "recall")))))
    axis.invert_yaxis()


def draw_distances(axis: "Axes", advice: Advice, names: Sequence[str]) -> None:
    """Draw recall by the number of layers ahead, and chance."""
    axis.axhline(100 * chance_of(advice), color="black", linewidth=0.8, linestyle=":", label="chance", zorder=1)
    for name in names:
        rows = sorted(rows_of(advice.predictability, predictor=name), key=lambda row: row["distance"])
        axis.plot(column(rows, "distance"), column(rows, "recall", 100), **predictor_look(name))
    for row in advice.predictability:
        if row["distance"] is not None and row["predictor"] not in names:
            axis.plot(row["distance"], 100 * row["recall"], **predictor_look(row["predictor"]) | {"linestyle": ""})
    distances = sorted({row["distance"] for row in advice.predictability if row["distance"] is not None})
    axis.set(xlabel="layers ahead", ylabel="recall (%)", xticks=distances, ylim=(0, None))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)


def predictor_look(name: str) -> dict[str, Any]:
    """The style of a predictor: a prefetching system's own style, dark grey for predictors without learning, black for chance."""
    if name in PREFETCHING:
        return system_look(name)
    return _SIMPLE | ({"color": "black", "marker": "|", "markersize": 9} if name == CHANCE else {})


def chance_of(advice: Advice) -> float:
    """Recall of K experts named at random."""
    return float(advice.trace["top_k"] / advice.trace["experts"])


def _asked_at_several(advice: Advice) -> list[str]:
    rows = [row for row in advice.predictability if row["distance"] is not None]
    return [name for name in names_in(rows, "predictor") if len(rows_of(rows, predictor=name)) > 1]


def _last(advice: Advice) -> list[Row]:
    """One row per predictor."""
    found: dict[str, Row] = {}
    for row in sorted(advice.predictability, key=lambda row: row["distance"] or 0):
        found.setdefault(row["predictor"], row)
    return list(found.values())


def _named(row: Row) -> str:
    if row["distance"] is None:
        return str(row["predictor"])
    return f"{row['predictor']}, {row['distance']} layer{'s' * (row['distance'] != 1)} ahead"


def _whiskers(row: Row) -> list[list[float]] | None:
    if not has_interval(row):
        return None
    return [[max(0.0, 100 * (row["recall"] - row["low"]))], [max(0.0, 100 * (row["high"] - row["recall"]))]]


def usage_figure(advice: Advice) -> "Figure":
    """How unequally the experts of each layer are used, and how many of them a number of tokens uses."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7.4, 3.0))
    _draw_shares(axes[0], advice)
    _draw_effective(axes[1], advice)
    draw_working_set(axes[2], advice)
    for axis in axes:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, fontsize=7)
    return fig


def _draw_shares(axis: "Axes", advice: Advice) -> None:
    rows = advice.concentration
    lines = {"top_quarter": ("most used 25 %", _ORANGE, "s", "--"), "top_tenth": ("most used 10 %", _BLUE, "o", "-")}
    for name, (label, colour, marker, dash) in lines.items():
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 3}
        axis.plot(column(rows, "layer"), column(rows, name, 100), label=label, **look)
    axis.set(xlabel="layer", ylabel="share of all uses (%)", ylim=(0, 102))


def _draw_effective(axis: "Axes", advice: Advice) -> None:
    rows = advice.concentration
    axis.axhline(advice.trace["experts"], color="black", linewidth=0.9, label="all")
    axis.plot(column(rows, "layer"), column(rows, "touched"), color=_GREY, marker="^", markersize=3, ls="--", label="used at all")
    axis.plot(column(rows, "layer"), column(rows, "effective"), color=_BLUE, marker="o", markersize=3, label="effective number")
    axis.set(xlabel="layer", ylabel="experts of a layer", ylim=(0, 1.05 * advice.trace["experts"]))


def draw_working_set(axis: "Axes", advice: Advice) -> None:
    """Draw the distinct experts of a layer over windows of tokens: mean over layers, and the smallest and largest layer."""
    rows, whole = advice.working_set, advice.request
    tokens = column(rows, "tokens")
    axis.axhline(advice.trace["experts"], color="black", linewidth=0.9, label="all")
    axis.fill_between(
        tokens, column(rows, "least"), column(rows, "greatest"), color=_BLUE, alpha=0.18, linewidth=0, label="all layers"
    )
    axis.plot(tokens, column(rows, "mean"), color=_BLUE, marker="o", label="mean of the layers")
    spread = [[whole["mean"] - whole["least"]], [whole["greatest"] - whole["mean"]]]
    axis.errorbar(
        whole["tokens"], [whole["mean"]], yerr=spread, color="black", marker="D", ls="", capsize=2, label="a whole request"
    )
    axis.set(xscale="log", xlabel="tokens", ylabel="distinct experts of a layer", ylim=(0, 1.05 * advice.trace["experts"]))
    axis.xaxis.set_major_formatter("{x:g}")


def reuse_figure(advice: Advice) -> "Figure":
    """How soon an expert is used again."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(4.6, 2.6))
    draw_reuse(axis, advice)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return fig


def draw_reuse(axis: "Axes", advice: Advice) -> None:
    """Draw the share of uses whose expert was last used at most so many tokens ago, and this share for random experts."""
    tokens = column(advice.reuse, "tokens")
    by_chance = [100 * (1 - (1 - chance_of(advice)) ** count) for count in tokens]
    axis.plot(tokens, by_chance, color="black", linestyle=":", marker="", label="experts drawn\nat random")
    axis.plot(tokens, column(advice.reuse, "share", 100), color=_BLUE, marker="o", label="this trace")
    axis.set(xscale="log", xlabel="within so many tokens", ylabel="uses that are reuses (%)", ylim=(0, 102))
    axis.set_xticks(tokens, [f"{count:g}" for count in tokens])
    axis.minorticks_off()


def sensitivity_figure(advice: Advice) -> "Figure":
    """Time per token at the recommended size with one thing changed, for on-demand loading and prefetching."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.4, 1.1 + 0.27 * len(advice.sensitivity)))
    draw_sensitivity(axis, advice)
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13 - 0.5 / len(advice.sensitivity)), ncols=4)
    return fig


def draw_sensitivity(axis: "Axes", advice: Advice) -> None:
    """Draw a row for every change; markers are hollow if the change does not fit into the machine's memory."""
    rows, chosen = advice.sensitivity, advice.recommendation or {}
    series = {kind: chosen.get(kind) for kind in ("on_demand", "prefetching")}
    for kind, timed in series.items():
        if timed is None:
            continue
        look = system_look(timed["system"]) | {"linestyle": "", "markersize": 6}
        values = column(rows, f"{kind}_s", 1e3)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            hollow = {} if row["fits"] else {"markerfacecolor": "white"}
            axis.plot(value, place, **look | {"label": look["label"] if place == 0 else "_more"} | hollow)
        axis.axvline(values[0], color=look["color"], linewidth=0.8, linestyle="--", zorder=1)
    if series["prefetching"] is not None:
        for place, row in enumerate(rows):
            axis.plot(
                [1e3 * row["on_demand_s"], 1e3 * row["prefetching_s"]], [place, place], color="#999999", linewidth=1, zorder=1
            )
    if not all(row["fits"] for row in rows):
        axis.plot([], [], linestyle="", marker="o", color="#555555", markerfacecolor="white", label="does not fit")
    axis.set_yticks(range(len(rows)), [row["change"] for row in rows])
    axis.set_xlabel("time per token (ms)")
    axis.invert_yaxis()
    _scale(axis, [value for row in rows for value in (row["on_demand_s"], row["prefetching_s"]) if value == value])


def _scale(axis: "Axes", values: Sequence[float]) -> None:
    if max(values) > _LINEAR_UP_TO * min(values):
        axis.set_xscale("log")
        log_ticks(axis.xaxis)
    else:
        axis.set_xlim(left=0)
