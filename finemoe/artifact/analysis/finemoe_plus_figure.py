"""The evidence for finemoe-plus (not in the paper) in one figure: how well it predicts, the contributions to its eviction rule,
and its speed compared with every other causal system.

All data comes from shipped tables, which `analysis.forecasts`, `analysis.recalls`, `analysis.next_use` and
`analysis.causal_grid` compute from public routing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.causal_grid import OURS, summary
from finemoe.artifact.plotting import MARKERS, PALETTE, RULE_NAMES, provenance, use_style
from finemoe.paths import ROOT
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DISTANCE = 3  # layers ahead: the paper's d, and the distance at which the other methods were evaluated
EVICTION_MEMORIES = (0.125, 0.25, 0.5)
MODES = {  # (setting, variant) of `forecasts.forecast_tables`
    ("online", "all requests"): "online, from nothing",
    ("history", "adapts to each request"): "history, adapting",
    ("history", "frozen"): "history, frozen",
}
MEMORY_ALONE = ("online", "a quarter of the requests: memory alone")
RULE, BEST_RULE = "next-use", "the best other rule"
MINIATURES = "three miniatures, two prompt sets each"
OVER = {  # columns of `causal_grid.summary`
    "over_lru": "on-demand, LRU",
    "over_promoe": "ProMoE",
    "over_finemoe": "FineMoE",
    "over_best": "the fastest other",
}
COLUMNS = [
    *("panel", "source", "quantity", "unit", "kind", "series", "stands_for"),
    *("trace", "testbed", "expert_memory", "distance", "probability", "value", "low", "high"),
]
_SAID, _RECALL, _METHODS, _EVICTION, _TPOT = "calibration", "recall", "methods", "eviction", "tpot"
_DEMANDED, _APART, _SHARE = "share demanded", "share demanded less probability said", "share of all forecasts"
_ECE = "expected calibration error"
_LOOKS: dict[str, dict[str, Any]] = {  # of modes: shades of the system's own colour, distinct in grey, too
    "online, from nothing": {"color": PALETTE[OURS], "marker": "o", "linestyle": "-"},
    "history, adapting": {"color": "#CC6677", "marker": "s", "linestyle": (0, (4, 1.5))},
    "history, frozen": {"color": "#A67C1E", "marker": "^", "linestyle": (0, (1, 1)), "markerfacecolor": "white"},
}
_LETTERS = "defghijk"  # of the panels of TPOT, one per workload
_OTHERS: dict[str, Any] = {"color": "#555555", "marker": "D", "markerfacecolor": "white"}
_KINDS: dict[str, dict[str, Any]] = {  # by kind of row in `next_use.next_use_table`
    "rule": {"color": PALETTE[OURS], "marker": "o", "label": RULE},
    "other rule": _OTHERS | {"label": BEST_RULE},
    "ablation": {"color": PALETTE[OURS], "marker": "o", "markerfacecolor": "white", "label": "one part left out or changed"},
    "ceiling": {"color": "black", "marker": "^", "markerfacecolor": "white", "label": "knows part of the future"},
}
_CELL: dict[str, Any] = {"linestyle": "", "markersize": 3.5, "color": PALETTE[OURS]}
_SLOWER = _CELL | {"markersize": 6, "color": "#F0A060", "markeredgecolor": "black", "markeredgewidth": 1.0}


def figure_points(tables: Mapping[str, str | Path]) -> pd.DataFrame:
    """Every point of the figure.

    Args:
        tables: the CSVs by content: "forecasts", "calibration", "recalls", "next_use", "causal_grid"; relative paths start at the
            repository root.
    Returns:
        Rows of COLUMNS, one per point: `value` of `quantity` in `unit`, with its 95 % interval `low` to `high` if there is one.
        `source` is the CSV, `series` what is drawn, `kind` its kind, and `stands_for` the rule or system that it is at this
        point, if that varies. expert_memory is a share of all experts, distance is in layers, probability is the predicted one. A
        column that does not apply to a point is empty.
    """
    read = {name: pd.read_csv(ROOT / path) for name, path in tables.items()}
    drawn: dict[str, list[Callable[[pd.DataFrame], pd.DataFrame]]] = {
        "calibration": [calibration_points],
        "forecasts": [recall_points, own_points],
        "recalls": [method_points],
        "next_use": [eviction_points],
        "causal_grid": [tpot_points],
    }
    parts = [points_of(read[n]).assign(source=Path(tables[n]).name) for n, some in drawn.items() for points_of in some]
    return pd.concat([part.reindex(columns=COLUMNS).astype({"stands_for": object}) for part in parts], ignore_index=True)


def calibration_points(calibration: pd.DataFrame) -> pd.DataFrame:
    """For every mode, three layers ahead, and every bin of probabilities: the share that came true, its difference from the
    prediction, and the share of forecasts in the bin; and the expected calibration error, once per mode."""
    bins = _of_modes(calibration[calibration.distance == DISTANCE]).assign(panel=_SAID)
    shares = bins.forecasts / bins.groupby("series").forecasts.transform("sum")
    quantities = {
        _DEMANDED: (bins.demanded, "share of the bin's forecasts"),
        _APART: (bins.demanded - bins.probability, "probability"),
        _SHARE: (shares, "share of the mode's forecasts"),
    }
    parts = [bins.assign(quantity=name, value=value, unit=unit) for name, (value, unit) in quantities.items()]
    errors = bins.drop_duplicates("series").assign(quantity=_ECE, value=lambda t: t.ece, unit="probability", probability=np.nan)
    return pd.concat([*parts, errors], ignore_index=True)


def recall_points(forecasts: pd.DataFrame) -> pd.DataFrame:
    """Recall at K of every mode by distance, over all folds."""
    return _recalls(_of_modes(forecasts[forecasts.fold == "all"])).assign(panel=_RECALL)


def own_points(forecasts: pd.DataFrame) -> pd.DataFrame:
    """The same, three layers ahead, and the recall of the request's own memory alone."""
    together = forecasts[(forecasts.fold == "all") & (forecasts.distance == DISTANCE)]
    alone = _of_modes(together, {MEMORY_ALONE: "the request's memory alone"}).assign(kind="part")
    return _recalls(pd.concat([_of_modes(together), alone])).assign(panel=_METHODS)


def method_points(recalls: pd.DataFrame) -> pd.DataFrame:
    """The methods that finemoe-plus is compared with, best first."""
    named = recalls.sort_values("recall", ascending=False).rename(columns={"method": "series"})
    return _recalls(named.assign(distance=DISTANCE, kind="other method")).assign(panel=_METHODS)


def _of_modes(table: pd.DataFrame, modes: Mapping[tuple[str, str], str] = MODES) -> pd.DataFrame:
    """The rows of some modes, in order, with their names as `series`."""
    parts = [table[(table.setting == s) & (table.variant == v)].assign(series=name) for (s, v), name in modes.items()]
    return pd.concat(parts, ignore_index=True).assign(kind="mode")


def _recalls(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"recall": "value"}).assign(quantity="recall at K", unit="share of the experts demanded")


def eviction_points(next_use: pd.DataFrame) -> pd.DataFrame:
    """Share of the gap from LRU to Belady that is closed by the rule, by the best other rule at each memory size, by variants of
    the rule, and with knowledge of part of the future. `series` is in the order of the figure, from the top."""
    table = next_use[next_use.expert_memory.isin(EVICTION_MEMORIES)].rename(columns={"rule": "series"})
    mine = table[table.series == RULE]
    others = table[(table.kind == "rule") & ~table.series.isin([RULE, "belady"])]
    best = others.loc[others.groupby("expert_memory").share.idxmax()].assign(stands_for=lambda t: t.series)
    best = best.assign(series=BEST_RULE, kind="other rule")
    found = pd.concat([mine, best, table[table.kind == "ablation"], table[table.kind == "ceiling"]], ignore_index=True)
    found = found.drop(columns=["low", "high"]).rename(columns={"share": "value", "share_low": "low", "share_high": "high"})
    return found.assign(panel=_EVICTION, quantity="share of the gap from LRU to Belady closed", unit="share of the gap's hits")


def tpot_points(causal_grid: pd.DataFrame) -> pd.DataFrame:
    """TPOT of finemoe-plus over that of the systems it is compared with, one point per cell; workloads with most cells first."""
    cells = summary(causal_grid)
    by_size = workload_of(cells.trace).map(workload_of(cells.trace).value_counts())
    cells = cells.assign(size=by_size).sort_values("size", ascending=False, kind="stable")
    parts = [cells.assign(series=name, value=cells[column]) for column, name in OVER.items()]
    parts[-1] = parts[-1].assign(stands_for=cells.best)
    return pd.concat(parts, ignore_index=True).assign(panel=_TPOT, kind="system", quantity="TPOT over the other's", unit="ratio")


def workload_of(traces: pd.Series) -> pd.Series:
    """A trace's name without its fold; the recorded miniatures form one workload."""
    whole = traces.str.partition(", fold")[0]
    return whole.where(~whole.str.contains("-mini-"), MINIATURES)


def geometric_mean(ratios: Sequence[float] | pd.Series) -> float:
    """Geometric mean of ratios."""
    return float(np.exp(np.log(np.asarray(ratios, dtype=float)).mean()))


def evidence_figure(points: pd.DataFrame) -> "Figure":
    """Draw the result of `figure_points`: calibration and recall side by side, the eviction rule below, and TPOT per workload."""
    import matplotlib.pyplot as plt

    use_style()
    workloads = list(dict.fromkeys(workload_of(points.trace.dropna())))
    heights = [3.4, 2.85] + [1.8] * len(workloads)
    heights[-1] += 0.4  # for the legend of testbeds
    fig = plt.figure(figsize=(7.2, 0.6 + sum(heights)))
    above, middle, *below = fig.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    left, right = above.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.05])[0]
    _draw_calibration(left, points[points.panel == _SAID])
    _draw_recall(right, points)
    _draw_eviction(middle, points[points.panel == _EVICTION])
    _draw_workloads(below, points[points.panel == _TPOT])
    fig.legend(handles=list(_legend()), loc="outside upper center", ncols=4)
    of_tpot = " to ".join(dict.fromkeys((_LETTERS[0], _LETTERS[len(workloads) - 1])))
    routing = f"routing: gpt-oss-20b (a to c), as titled ({of_tpot})"
    details = ("whiskers: 95 % over requests", "dashed in (c): next-use", f"({of_tpot}): geometric means, scales differ")
    provenance(fig, f"recorded (a, b), replayed (c), simulated ({of_tpot})", routing, *details, "not in the paper")
    return fig


def _title(place: "SubFigure", text: str) -> None:
    place.suptitle(text, x=0.01, ha="left", fontsize=8.5, fontweight="bold")


def _legend() -> Iterator[Any]:
    from matplotlib.lines import Line2D

    for mode, look in _LOOKS.items():
        yield Line2D([], [], label=mode, **look)
    yield Line2D([], [], linestyle="", label="other methods", **_OTHERS)


def _draw_calibration(place: "SubFigure", points: pd.DataFrame) -> None:
    """Draw predictions against outcomes; below, their difference and the share of forecasts."""
    _title(place, f"(a) Calibration of predictions, {DISTANCE} layers ahead")
    axes = place.subplots(3, 1, sharex=True, height_ratios=[2.6, 1, 1])
    axes[0].plot([0, 1], [0, 1], color="black", linewidth=0.8, zorder=1)
    axes[1].axhline(0, color="black", linewidth=0.8, zorder=1)
    for axis, quantity in zip(axes, (_DEMANDED, _APART, _SHARE), strict=True):
        for mode, line in points[points.quantity == quantity].groupby("series", sort=False):
            axis.plot(line.probability, line.value, label=mode, linewidth=1, **_LOOKS[str(mode)])
    axes[0].set(ylabel="share demanded", xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    axes[1].set_ylabel("demanded\nless predicted", fontsize=6.5)
    axes[2].set_ylabel("share of\nforecasts", fontsize=6.5)
    axes[2].set(xlabel="predicted probability (means of ten bins)", yscale="log")
    axes[2].set_ylim(top=2)
    axes[2].yaxis.set_major_formatter("{x:g}")
    place.align_ylabels(axes)
    errors = points[points.quantity == _ECE]
    text = "\n".join(f"{mode}: {error:.3f}" for mode, error in zip(errors.series, errors.value, strict=True))
    axes[0].text(0.98, 0.05, f"{_ECE}\n{text}", ha="right", va="bottom", fontsize=6.5, transform=axes[0].transAxes)


def _draw_recall(place: "SubFigure", points: pd.DataFrame) -> None:
    """Draw recall by distance, and next to other methods, which are known at one distance only."""
    _title(place, "(b) How many demanded experts are named?")
    above, below = place.subfigures(2, 1, squeeze=False, height_ratios=[1.1, 1])[:, 0]
    _draw_distances(above.subplots(), points[points.panel == _RECALL])
    _draw_methods(below.subplots(), points[points.panel == _METHODS])


def _draw_distances(axis: "Axes", points: pd.DataFrame) -> None:
    for mode, line in points.groupby("series", sort=False):
        axis.errorbar(line.distance, line.value, yerr=_errors(line), capsize=2, linewidth=1, **_LOOKS[str(mode)])
    axis.set(xlabel="layers ahead", ylabel="recall at K (share)", xticks=sorted(set(points.distance)))


def _draw_methods(axis: "Axes", points: pd.DataFrame) -> None:
    for row, (series, point) in enumerate(points.groupby("series", sort=False)):
        look = _LOOKS.get(str(series), _OTHERS) | {"linestyle": ""}
        axis.errorbar(point.value, [row], xerr=_errors(point), capsize=2, elinewidth=1, **look)
    axis.set_yticks(range(points.series.nunique()), list(dict.fromkeys(points.series)), fontsize=6.5)
    axis.set_xlabel(f"recall at K (share), {DISTANCE} layers ahead")
    axis.invert_yaxis()


def _errors(points: pd.DataFrame) -> list[np.ndarray]:
    """Lengths of whiskers, [2][n]; zero without an interval."""
    return [(points.value - points.low).clip(lower=0).to_numpy(), (points.high - points.value).clip(lower=0).to_numpy()]


def _draw_eviction(place: "SubFigure", points: pd.DataFrame) -> None:
    """Draw a row for every variant of the rule, a panel for every memory size."""
    _title(place, "(c) What is the eviction rule made of? Share of the gap from LRU (0) to Belady (1) closed")
    memories, series = sorted(set(points.expert_memory)), list(dict.fromkeys(points.series))
    axes = place.subplots(1, len(memories), sharey=True)
    for axis, memory in zip(axes, memories, strict=True):
        _draw_variants(axis, points[points.expert_memory == memory], series)
        axis.set(title=f"{100 * memory:g} % of the experts", xlabel="share of the gap closed")
    axes[0].set_yticks(range(len(series)), series, fontsize=6.5)
    axes[0].invert_yaxis()
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    place.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7)


def _draw_variants(axis: "Axes", points: pd.DataFrame, series: Sequence[str]) -> None:
    """Draw each variant in its row; the line marks the complete rule."""
    axis.axvline(points.value[points.series == RULE].iloc[0], color=PALETTE[OURS], linewidth=0.8, linestyle="--", zorder=1)
    for (kind, name), point in points.groupby(["kind", "series"], sort=False):
        look: dict[str, Any] = {"linestyle": "", "capsize": 2, "elinewidth": 1, "markersize": 4} | _KINDS[str(kind)]
        axis.errorbar(point.value, [series.index(str(name))], xerr=_errors(point), **look)
    _name_best_rule(axis, points[points.series == BEST_RULE].iloc[0], series.index(BEST_RULE))
    _divide(axis, list(points.kind))
    axis.set_xlim(min(0.0, points.value.min(), points.low.min()) - 0.04, 1.02)


def _divide(axis: "Axes", kinds: Sequence[str]) -> None:
    """Draw a thin line between rows of different kinds."""
    for row in range(1, len(kinds)):
        if kinds[row] != kinds[row - 1]:
            axis.axhline(row - 0.5, color="#999999", linewidth=0.6, zorder=1)


def _name_best_rule(axis: "Axes", point: pd.Series, row: int) -> None:
    """Write the name of the best rule next to its marker."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    place: dict[str, Any] = {"xy": (point.value, row), "xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    axis.annotate(RULE_NAMES.get(point.stands_for, point.stands_for), **place, fontsize=6, bbox=box, zorder=2)


def _draw_workloads(places: Sequence["SubFigure"], points: pd.DataFrame) -> None:
    """Draw each workload in its own row, with a legend of the testbeds' markers below the last."""
    workloads, looks = workload_of(points.trace), _looks_of_testbeds(list(dict.fromkeys(points.testbed)))
    for letter, place, workload in zip(_LETTERS, places, dict.fromkeys(workloads), strict=False):
        _title(place, f"({letter}) TPOT of finemoe-plus over another system's: {workload}")
        _draw_tpot(place, points[workloads == workload], looks)
    places[-1].legend(handles=list(_testbed_legend(looks)), loc="outside lower center", ncols=3, fontsize=7)


def _draw_tpot(place: "SubFigure", points: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> None:
    """Draw a panel for every system that it is compared with, each with its own scale."""
    memories = sorted(set(points.expert_memory))
    axes = place.subplots(1, len(OVER))
    for axis, other in zip(axes, OVER.values(), strict=True):
        part = points[points.series == other].assign(column=lambda t: _columns(t, memories, list(looks)))
        _draw_cells(axis, part, looks)
        axis.set_xticks(range(len(memories)), [f"{100 * memory:g}" for memory in memories])
        axis.set_xlabel("experts in the cache (%)", fontsize=7.5)
        ratios = f"mean {geometric_mean(part.value):.3f}, worst {part.value.max():.3f}"
        axis.set_title(f"over {other}\n{ratios}\nslower in {(part.value > 1).sum()} of {len(part)} cells", fontsize=6.8)
    axes[0].set_ylabel("ratio of TPOT")


def _draw_cells(axis: "Axes", cells: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> None:
    """Draw a marker for every cell; in the shaded part, above 1, finemoe-plus is slower."""
    for testbed, part in cells.groupby("testbed", sort=False):
        faster, slower = part[part.value <= 1], part[part.value > 1]
        axis.plot(faster.column, faster.value, **_CELL | looks[str(testbed)])
        axis.plot(slower.column, slower.value, **_SLOWER | looks[str(testbed)], zorder=3)
    low, high = cells.value.min(), max(1.0, cells.value.max())
    axis.set_ylim(low - 0.08 * (high - low), high + 0.14 * (high - low))
    axis.axhspan(1, axis.get_ylim()[1], color="#E8E8E8", linewidth=0, zorder=0)
    axis.axhline(1, color="black", linewidth=0.8, zorder=1)


def _columns(cells: pd.DataFrame, memories: Sequence[float], testbeds: Sequence[str]) -> list[float]:
    """Horizontal positions of cells: at their memory size, testbeds side by side."""
    width, middle = 0.68 / len(testbeds), (len(testbeds) - 1) / 2
    return [
        memories.index(m) + width * (testbeds.index(t) - middle) for m, t in zip(cells.expert_memory, cells.testbed, strict=True)
    ]


def _looks_of_testbeds(testbeds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Marker and name of each testbed; the name omits what its title adds about the paper and the host."""
    titles = {name: Testbed.load(name).title.split(" (")[0].split(", ")[:2] for name in testbeds}
    return {name: {"marker": marker, "label": ", ".join(titles[name])} for name, marker in zip(testbeds, MARKERS, strict=False)}


def _testbed_legend(looks: Mapping[str, dict[str, Any]]) -> Iterator[Any]:
    from matplotlib.lines import Line2D

    for look in looks.values():
        yield Line2D([], [], **_CELL | look)
    yield Line2D([], [], **_SLOWER | {"marker": MARKERS[0], "label": "finemoe-plus is slower"})
