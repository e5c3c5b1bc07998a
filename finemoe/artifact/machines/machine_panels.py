"""The panels of a machine itself: its link, its overhead, and the error of the calibrated simulator."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.machines.axes import draw_band, look_of, say, set_memory_axis
from finemoe.artifact.machines.cells import TPOT_BOUND, link_peak
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.schema import IDLE, LAUNCHING, MAPPED, QUEUED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHADES = ("#56B4E9", "#0072B2", "#00304D", "#000000")


def draw_machine(axes: list["Axes"], machine: Measured) -> None:
    copies = machine.tables["copies"]
    for axis, main_thread in zip(axes, (IDLE, LAUNCHING), strict=False):
        _draw_link(axis, copies, main_thread, link_peak(machine))
    axes[1].set_ylabel("")
    drawn = {label: handle for axis in axes[:2] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if drawn:
        axes[0].figure.legend(drawn.values(), drawn, loc="outside lower left", ncols=len(drawn), fontsize=6.5)
    _draw_overhead(axes[2], machine.tables["overhead"])
    _draw_calibrated(axes[3], machine.tables["predictions"])


def _draw_link(axis: "Axes", copies: pd.DataFrame, main_thread: str, peak: float) -> None:
    """Draw the rate by chunk size, one line per number of chunks in flight, with the peak and 90 % of it."""
    axis.set_title(f"link, inference {main_thread}")
    mine = copies[copies.main_thread == main_thread].sort_values("chunk_bytes")
    if mine.empty:
        say(axis, "not measured")
        return
    unit, name = (2**20, "MiB") if mine.chunk_bytes.max() >= 2**20 else (2**10, "KiB")
    in_chunks = mine[~mine["mode"].isin([QUEUED, MAPPED])]
    for place, (count, line) in enumerate(in_chunks.groupby("chunks_in_flight")):
        look = {"color": _SHADES[place % len(_SHADES)], "marker": "os^D"[place % 4], "label": f"link: {count} in flight"}
        _errorbar(axis, line.chunk_bytes / unit, line, **look)
    for mode, marker, label in ((QUEUED, "P", "all at once"), (MAPPED, "*", MAPPED)):
        if len(points := mine[mine["mode"] == mode]):
            _errorbar(axis, points.chunk_bytes / unit, points, color="#D55E00", marker=marker, linestyle="", label=label)
    sizes = _apart(mine.chunk_bytes / unit)
    for share, style, side, text in ((1.0, "-", "bottom", f"peak {peak / 1e9:.3g}"), (0.9, "--", "top", "90 %")):
        axis.axhline(share * peak / 1e9, color="black", linewidth=0.8, linestyle=style)
        axis.text(0.02, share * peak / 1e9, text, fontsize=6, va=side, transform=axis.get_yaxis_transform())
    axis.set(xscale="log", xlabel=f"chunk ({name})", ylabel="host to slots (GB/s)", ylim=(0, 1.15 * copies.high.max() / 1e9))
    axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axis.minorticks_off()


def _apart(sizes: pd.Series) -> list[float]:
    """From the largest down, the sizes with enough room for a label."""
    kept: list[float] = []
    for size in sorted(set(sizes), reverse=True):
        if not kept or size < kept[-1] / 1.4:
            kept.append(size)
    return kept


def _errorbar(axis: "Axes", places: pd.Series, rates: pd.DataFrame, **look: Any) -> None:
    middle = rates.bytes_per_s / 1e9
    errors = [middle - rates.low / 1e9, rates.high / 1e9 - middle]
    axis.errorbar(places, middle, yerr=errors, capsize=1.5, elinewidth=0.8, markersize=4, linewidth=1.1, **look)


def _draw_overhead(axis: "Axes", overhead: pd.DataFrame) -> None:
    """Draw every round relative to eager's median, and the medians; models side by side."""
    axis.set_title("every expert resident")
    variants, models = list(dict.fromkeys(overhead.variant)), list(dict.fromkeys(overhead.model))
    if "eager" not in variants:
        say(axis, "not measured")
        return
    for number, model in enumerate(models):
        mine = overhead[overhead.model == model]
        eager_s = mine[mine.variant == "eager"].seconds_per_token.median()
        shift = 0.22 * (number - (len(models) - 1) / 2)
        for variant, part in mine.groupby("variant", sort=False):
            place, ratios = variants.index(str(variant)) + shift, part.seconds_per_token / eager_s
            axis.plot(ratios, [place] * len(ratios), linestyle="", marker="os^D"[number % 4], color="#9A9A9A", markersize=3)
            axis.plot(ratios.median(), place, "|", color="black", markersize=9, markeredgewidth=1.5)
        if len(models) > 1:
            axis.plot([], [], linestyle="", marker="os^D"[number % 4], color="#9A9A9A", markersize=3, label=model)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.axvline(1.05, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(variants)), variants, fontsize=6.5)
    axis.set(xlabel="time over eager's", ylim=(len(variants) - 0.4, -0.6))
    if len(models) > 1:
        axis.legend(fontsize=5.5, loc="lower right", handlelength=0.8, labelspacing=0.2, borderpad=0.1)


def _draw_calibrated(axis: "Axes", predictions: pd.DataFrame) -> None:
    """Draw the errors of the simulator after calibration, for every model."""
    axis.set_title("calibrated simulator")
    if predictions.empty:
        say(axis, "not compared")
        return
    for (policy, _), part in predictions.groupby(["policy", "model"], sort=False):
        mine = part.sort_values("expert_memory")
        axis.plot(100 * mine.expert_memory, 100 * mine.error, **look_of(str(policy)), markersize=4)
    draw_band(axis, 100 * TPOT_BOUND)
    axis.set_ylabel("TPOT error (%)")
    set_memory_axis(axis, predictions.expert_memory, least_apart=15.0)
