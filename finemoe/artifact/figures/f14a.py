"""Figure 14a: hit rate of an expert cache that is fed by one predictor after the other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.analysis.system_tables import ABLATION, gain, table_of
from finemoe.artifact.figures.grids import grid, replay_provenance
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title, whiskers
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import series_styles
from finemoe.paths import ROOT
from finemoe.simulation.comparison import system_reports
from finemoe.simulation.systems import left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a part of FineMoE's prediction adds: the predictor with it and without it.
STEPS = {"semantic": ("Map (T+S)", "Map (T)"), "δ": ("Map (T+S+δ)", "Map (T+S)")}
_LOADS = ["demand_loads", "useful_loads", "wasted_loads", "unused_loads"]  # per expert demanded
_UNUSED: dict[str, Any] = {"facecolor": "none", "edgecolor": "black", "hatch": "//////", "linewidth": 0.5}


class Ablation(NamedTuple):
    """The tables of Figure 14a.

    Attributes:
        table: rows of `comparison_rows` by model and dataset, real routing among them, and loads, the sum of their kinds.
        steps: rows (model, dataset, step, value, low, high), what each of STEPS adds to the hit rate, paired over requests.
        left_out: predictors that the traces cannot serve, with the reason.
    """

    table: pd.DataFrame
    steps: pd.DataFrame
    left_out: dict[str, str]


def ablation(
    traces: Sequence[str], real: str, expert_memory: float, prefetch_distances: Sequence[int], store_capacity: int, seed: int
) -> Ablation:
    """Replay every predictor on every trace.

    Args:
        real: path of the table of gpt-oss-20b, from the repository root. prefetch_distances: d of each trace, in layers.
        store_capacity: C, in maps. seed: for the bootstrap.
    """
    tables, steps = [], []
    missing: dict[str, str] = {}
    for (model, dataset, trace), distance in zip(recordings(traces), prefetch_distances, strict=True):
        history, served, panel = trace.split("history"), trace.split("served"), {"model": model, "dataset": dataset}
        missing |= left_out(served, ABLATION, distance)
        reports = system_reports(history, served, ABLATION, [expert_memory], distance, store_capacity, seed)
        tables.append(table_of(reports, seed).assign(**panel))
        for step, (more, less) in STEPS.items():
            added = gain(reports[more, expert_memory], reports[less, expert_memory], seed)
            steps.append(panel | {"step": step, **added._asdict()})
    table = pd.concat([*tables, pd.read_csv(ROOT / real)], ignore_index=True)
    return Ablation(table.assign(loads=table[_LOADS].sum(axis=1)), pd.DataFrame(steps), missing)


def draw(table: pd.DataFrame, expert_memory: float, prefetch_distances: Sequence[int], store_capacity: int) -> "Figure":
    """Draw Figure 14a.

    Args:
        table: as of `Ablation`. expert_memory, prefetch_distances, store_capacity: for the line below the figure.
    """
    models = in_order(table.model)
    fig, axes = grid(2, len(models), 2.35, 4.6, sharey=True)
    look = series_styles(in_order(table.dataset))
    for (upper, lower), model in zip(axes.T, models, strict=True):
        part = table[table.model == model]
        _draw_hit_rates(upper, part, look)
        _draw_loads(lower, part, look)
        upper.set(title=panel_title(model), xlim=(0.2, 1.0), xlabel="expert hit rate")
        lower.set(xlim=(0, max(1.2, 1.05 * table.loads.max())), xlabel="loads per expert demanded")
        _name_predictors((upper, lower), sorted(set(ABLATION) - set(part.system)))
    legend_above(fig, axes[0], ncols=4, extra={"evicted unused": plt.Rectangle((0, 0), 1, 1, **_UNUSED)})
    replay_provenance(fig, expert_memory, prefetch_distances, store_capacity)
    return fig


def _rows(part: pd.DataFrame) -> list[tuple[str, pd.DataFrame, list[float]]]:
    """Of every dataset: its points and their heights, the datasets of a model one above the other."""
    names, spread = list(ABLATION), 0.18 * (part.dataset.nunique() > 1)
    groups = enumerate(part.groupby("dataset", sort=False))
    return [
        (str(dataset), points, [names.index(name) + spread * (2 * number - 1) for name in points.system])
        for number, (dataset, points) in groups
    ]


def _draw_hit_rates(axis: "Axes", part: pd.DataFrame, look: dict[str, Any]) -> None:
    for dataset, points, heights in _rows(part):
        of_dataset = {"fmt": look["markers"][dataset], "color": look["palette"][dataset], "label": dataset}
        axis.errorbar(points.hit_rate, heights, xerr=whiskers(points, "hit_rate"), capsize=2, **of_dataset)


def _draw_loads(axis: "Axes", part: pd.DataFrame, look: dict[str, Any]) -> None:
    for dataset, points, heights in _rows(part):
        colour = look["palette"][dataset]
        axis.barh(heights, points.loads, height=0.3, color=colour, alpha=0.55, edgecolor="black", linewidth=0.5)
        axis.barh(heights, points.wasted_loads, height=0.3, **_UNUSED)


def _name_predictors(axes: Sequence["Axes"], untested: Sequence[str]) -> None:
    names = list(ABLATION)
    for axis in axes:
        axis.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
        axis.set_yticklabels(names)
        for name in untested:
            place = (0.03, names.index(name))
            axis.annotate("not testable", place, xycoords=("axes fraction", "data"), fontsize=6.5, va="center")
