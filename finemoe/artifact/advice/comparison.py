"""Several traces in one figure and its table: hit rates, times, and the benefit of prefetching."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.advice.advise import advise
from finemoe.advice.result import Advice
from finemoe.advice.systems import ALL, BELADY_RULE, FINEMOE, ORACLE, PLUS, RESIDENT
from finemoe.artifact.advice.gallery_tables import read_advice
from finemoe.artifact.advice.looks import RULE_OF
from finemoe.artifact.advice.memory_figures import draw_hit_rates, draw_prefetching, draw_times, finish_times
from finemoe.artifact.plotting import provenance, use_style
from finemoe.artifact.progress import steps
from finemoe.importers import read_trace
from finemoe.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_SYSTEMS = ("on-demand (LRU)", "on-demand (next use)", FINEMOE, PLUS, ORACLE, RESIDENT)
COLUMNS = [
    *("trace", "model", "panel", "series", "slots", "expert_memory", "expert_memory_bytes", "fits"),
    *("quantity", "unit", "value", "low", "high"),
]
_ROW_INCHES = 1.9
_NUM_STEPS = 3 + len(ALL)  # progress steps: hit rates, every system, predictors, and the sensitivity of the recommendation


def advice_on_traces(traces: Sequence[str], sizes: Sequence[str] = (), **options: Any) -> dict[str, Advice]:
    """Advice on traces, by file name.

    Args:
        traces: paths; a relative path starts at the repository root.
        sizes: the model that provides each trace's sizes, "" for the published model with the same layers and experts; empty to
            use that for all traces.
        options: of `finemoe.advice.advise`.
    """
    named = [*sizes, *([""] * (len(traces) - len(sizes)))]
    found = {}
    for trace, model in zip(traces, named, strict=True):
        path = ROOT / trace
        name = path.name.removesuffix(".trace")
        with steps(name, _NUM_STEPS, "step") as bar:
            found[name] = advise(read_trace(path), model=model or None, say=bar.advance, **options)
    return found


def shipped_advice(folder: str, hardware: str) -> dict[str, Advice]:
    """Shipped advice on real traces for a testbed, by trace; empty if the tables do not include the testbed."""
    found = read_advice(ROOT / folder) if folder else {}
    return {trace: advice for (trace, testbed), advice in found.items() if testbed == Path(hardware).stem}


def comparison_points(found: Mapping[str, Advice]) -> pd.DataFrame:
    """The tidy table behind the figure: the rules it shows, and all systems, including those it does not show."""
    return pd.DataFrame([row for name, advice in found.items() for row in _points(name, advice)], columns=COLUMNS)


def comparison_figure(found: Mapping[str, Advice], hardware: str) -> "Figure":
    """One row per trace: hit rate, time per token, and the time of the best prefetching system over the best on-demand system."""
    import matplotlib.pyplot as plt

    use_style()
    fig, grid = plt.subplots(len(found), 3, figsize=(7.4, 0.9 + _ROW_INCHES * len(found)), squeeze=False)
    for axes, (name, advice) in zip(grid, found.items(), strict=True):
        _draw_row(axes, name, advice)
    for column in grid.T:
        for axis in [axis for axis in column if axis.get_visible()][:-1]:
            axis.set_xlabel("")
    handles = _handles(list(grid.flat))
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=7)
    details = ("recorded routing", "bands: 95 % over requests", "hatched: does not fit", "not in the paper")
    provenance(fig, f"replayed (left), simulated on {hardware} (others)", *details)
    return fig


def shown_rules(advice: Advice) -> list[str]:
    """LRU, the best rule that does not know the future, and Belady's."""
    return list(dict.fromkeys(["lru", advice.knee["rule"], BELADY_RULE]))


def _handles(axes: Sequence["Axes"]) -> dict[str, Any]:
    """The first handle of each label; a rule looks like the system that loads on demand with it, so one name covers both."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    named = {RULE_OF[label] for label in found if label in RULE_OF}
    return {label: handle for label, handle in found.items() if label not in named}


def _draw_row(axes: Sequence["Axes"], name: str, advice: Advice) -> None:
    draw_hit_rates(axes[0], advice, shown_rules(advice), in_percent=True)
    timed = {row["system"] for row in advice.times}
    shown = [system for system in SHOWN_SYSTEMS if system in timed]
    if shown:
        draw_times(axes[1], advice, shown, in_percent=True)
        finish_times([axes[1]], advice, shown, in_percent=True)
    if advice.prefetching:
        draw_prefetching(axes[2], advice, in_percent=True)
    for axis in axes[1:]:
        axis.set_visible(bool(axis.has_data()))
    axes[0].set_title(f"{name}: {advice.trace['layers']}×{advice.trace['experts']}/{advice.trace['top_k']}", loc="left")
    axes[2].set_ylabel("prefetching / on demand")


def _points(name: str, advice: Advice) -> Iterator[dict[str, Any]]:
    for row in [row for row in advice.hit_rates if row["rule"] in shown_rules(advice)]:
        yield _point(name, advice, row, "hit rate", row["rule"], "hit_rate", "share of demanded experts")
    for row in advice.times:
        yield _point(name, advice, row, "time per token", row["system"], "tpot_s", "s")
    for row in advice.prefetching:
        yield _point(name, advice, row, "prefetching over on demand", row["prefetching"], "ratio", "ratio of times")


def _point(name: str, advice: Advice, row: Mapping[str, Any], panel: str, series: str, column: str, unit: str) -> dict[str, Any]:
    each = advice.trace["expert_bytes"]
    return {
        "trace": name,
        "model": advice.trace["model"],
        "panel": panel,
        "series": series,
        "slots": row["slots"],
        "expert_memory": row["expert_memory"],
        "expert_memory_bytes": None if each is None else row["slots"] * each,
        "fits": row.get("fits"),
        "quantity": column,
        "unit": unit,
        "value": row[column],
        "low": row["low"],
        "high": row["high"],
    }
