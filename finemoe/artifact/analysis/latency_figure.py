"""The picture of systems on a testbed: TTFT, TPOT and hit rate, side by side for every model and dataset (Figs. 10 and 13)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.analysis.latency import BASELINES, BOUNDS, LATENCY_SYSTEMS, OURS, SHOWN_SYSTEMS
from finemoe.artifact.machines.measured import NOT_YET
from finemoe.artifact.plotting import PALETTE, log_ticks, model_title, provenance, series_styles, use_style
from finemoe.simulation.cost import PUBLISHED
from finemoe.simulation.systems import SYSTEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = {"ttft_s": "TTFT (ms)", "tpot_s": "TPOT (ms)", "hit_rate": "expert hit rate"}
_HATCHES = {"FineMoE": "", "on-demand (LRU)": "....", "oracle": "xxxx", "No-offload": ""}
_FAR_APART = 20  # times, of bars of which the lowest could not be seen on a linear axis
_NOT_IN_THE_PAPER = {"finemoe-plus": {"color": PALETTE["finemoe-plus"], "marker": "*", "hatch": ""}}
_GREYS = {"on-demand (LRU)": "#D0D0D0", "oracle": "white", "No-offload": "#6E6E6E"}


def system_looks() -> Mapping[str, dict[str, Any]]:
    """Colour, marker and hatch of every system, the same in every figure; what bounds the others is grey."""
    look, hatches = series_styles(list(SYSTEMS)), ("//", "\\\\", "--", "||")
    names = list(LATENCY_SYSTEMS)
    return {
        name: {
            "color": _GREYS.get(name) or look["palette"][name],
            "marker": look["markers"].get(name, ("s", "X", "*")[index % 3]),
            "hatch": _HATCHES.get(name, hatches[index % 4]),
        }
        for index, name in enumerate(names)
    } | _NOT_IN_THE_PAPER


def shown_name(system: str) -> str:
    """A system's name in a legend, which says where it is not one of the paper's."""
    return f"{system} (not in the paper)" if system in OURS else system


def systems_figure(summary: pd.DataFrame, gains: pd.DataFrame, *details: str, measured: pd.DataFrame | None = None) -> "Figure":
    """Draw what `analysis.latency.means` found for (model, dataset, system), and FineMoE's gains below.

    Args:
        gains: as `verdicts.gains.gains_table`; reported ones are drawn hollow where they are not NaN.
        details: settings, for the line below the figure.
        measured: for one more row, TPOT on a real GPU as `machines.cells.tpot_on_gpu` found it; it may be empty.
    """
    import matplotlib.pyplot as plt

    use_style()
    models = list(dict.fromkeys(summary.model))
    systems = [name for name in SHOWN_SYSTEMS if name in set(summary.system)]
    heights = [1, 1, 1, 1.1] + [0.8] * (measured is not None)
    size = (2.6 * len(models), 7.6 * sum(heights) / 4.1)
    fig, axes = plt.subplots(len(heights), len(models), figsize=size, squeeze=False, height_ratios=heights)
    for column, model in enumerate(models):
        part = summary[summary.model == model]
        axes[0][column].set_title(model_title(model).replace(" (", "\n("))
        for row, (quantity, label) in enumerate(QUANTITIES.items()):
            _draw_bars(axes[row][column], part, quantity, systems)
            axes[row][column].set_ylabel(label if column == 0 else "")
        _draw_gains(axes[3][column], gains[gains.model == model])
        axes[3][column].set_ylabel("FineMoE's gain (%)" if column == 0 else "")
        if measured is not None:
            _draw_measured(axes[4][column], measured[measured.model == PUBLISHED.get(model)])
            axes[4][column].set_ylabel("measured TPOT (ms)" if column == 0 else "")
    (bars, names), (gained, quantities) = (axes[row][0].get_legend_handles_labels() for row in (1, 3))
    fig.legend([*bars, *gained], [*names, *quantities], loc="outside upper center", ncols=min(5, len(models) + 1))
    provenance(fig, "simulated", *details, "whiskers: 95 % over requests")
    return fig


def _draw_bars(axis: "Axes", part: pd.DataFrame, quantity: str, names: Sequence[str]) -> None:
    datasets, looks, width = list(dict.fromkeys(part.dataset)), system_looks(), 0.84 / len(names)
    scale = 1e3 if quantity.endswith("_s") else 1.0
    if part[quantity].isna().all():
        axis.text(0.5, 0.5, "no prefill recorded", ha="center", va="center", transform=axis.transAxes, fontsize=8)
        axis.set_yticks([])
    for index, name in enumerate(names):
        bars = part[part.system == name].set_index("dataset").reindex(datasets)
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(datasets))]
        look = {"color": looks[name]["color"], "hatch": looks[name]["hatch"], "edgecolor": "black", "linewidth": 0.4}
        look["alpha"] = 0.9 if name in BOUNDS else 1
        heights = scale * bars[quantity]
        errors = [
            (heights - scale * bars[f"{quantity}_low"]).clip(lower=0),
            (scale * bars[f"{quantity}_high"] - heights).clip(lower=0),
        ]
        axis.bar(places, heights, width, yerr=errors, error_kw={"linewidth": 0.7}, label=shown_name(name), **look)
    axis.set_xticks(range(len(datasets)), datasets)
    axis.margins(x=0.02)
    if quantity == "hit_rate":
        axis.set_ylim(0, 1.05)


def _draw_measured(axis: "Axes", part: pd.DataFrame) -> None:
    """On a real GPU; the panel says so where nobody has measured yet."""
    if part.empty:
        axis.text(0.5, 0.5, NOT_YET, ha="center", va="center", transform=axis.transAxes, fontsize=8)
        axis.set(xticks=[], yticks=[])
        return
    looks = system_looks()
    for place, (name, tpot_s) in enumerate(zip(part.system, part.tpot_s, strict=True)):
        look = {"color": looks[name]["color"], "hatch": looks[name]["hatch"]} if name in looks else {"color": "white"}
        axis.bar(place, 1e3 * tpot_s, edgecolor="black", linewidth=0.4, **look)
    axis.set_xticks(range(len(part)), [name.replace("-", "-\n") for name in part.system], fontsize=5.5)
    if part.tpot_s.max() > _FAR_APART * part.tpot_s.min():
        axis.set_yscale("log")
        axis.set_ylim(bottom=1e3 * part.tpot_s.min() / 2)
        log_ticks(axis.yaxis)
    axis.set_title(part.machine.iloc[0], fontsize=7)


def _draw_gains(axis: "Axes", gains: pd.DataFrame) -> None:
    """By what share FineMoE's TTFT and TPOT are lower and its hit rate higher than each baseline's; the paper's values hollow."""
    baselines, quantities = list(BASELINES), {"ttft_s": "TTFT lower", "tpot_s": "TPOT lower", "hit_rate": "hit rate higher"}
    for index, (quantity, label) in enumerate(quantities.items()):
        part = gains[gains.quantity == quantity]
        offsets = [0.22 * (index - 1) + 0.07 * (number % 2) for number in part.groupby("baseline", sort=False).cumcount()]
        places = [baselines.index(name) + offset for name, offset in zip(part.baseline, offsets, strict=True)]
        look: dict[str, Any] = {
            "marker": ("v", "s", "^")[index],
            "linestyle": "",
            "markersize": 4,
            "color": ("#D55E00", "#0072B2", "#009E73")[index],
        }
        errors = [(part.gain - part.low).clip(lower=0) * 100, (part.high - part.gain).clip(lower=0) * 100]
        axis.errorbar(places, 100 * part.gain, yerr=errors, elinewidth=0.8, label=label, **look)
        if part.reported.notna().any():
            axis.plot(places, 100 * part.reported, markerfacecolor="white", **look, label=f"{label}, the paper's")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(baselines)), [name.replace("-", "-\n") for name in baselines], fontsize=6.5)
    axis.set_xlim(-0.5, len(baselines) - 0.5)
