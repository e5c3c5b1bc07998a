"""Styles and scales of quantities, systems and memory sizes in the panels of a machine's figure."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.analysis.latency_figure import system_looks
from finemoe.artifact.machines.cells import SYSTEM_NAMES
from finemoe.artifact.plotting import DASHES, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


QUANTITIES = {"tpot_s": "TPOT (ms)", "hit_rate": "expert hit rate", "link_use": "link use"}
POLICIES = ("finemoe", "finemoe-plus", "promoe", "moe-infinity", "mixtral-offloading", "deepspeed-inference", "on-demand")


_DODGE = 2.2  # percent of the experts between two systems; the smallest sizes are 12.5 apart


def say(axis: "Axes", text: str) -> None:
    """Write a text in a panel without data."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, fontsize=7.5, color="#555555")
    axis.set_axis_off()


def look_of(policy: str) -> dict[str, Any]:
    """A system's name, colour and marker, as in every other figure, and its dashes; grey lines are slightly darker than bars."""
    look, name = system_looks()[SYSTEM_NAMES[policy]], SYSTEM_NAMES[policy]
    place = POLICIES.index(policy) if policy in POLICIES else len(POLICIES)
    color = "#7A7A7A" if policy == "on-demand" else look["color"]
    dash = DASHES[place % len(DASHES)]
    return {"label": name, "color": color, "marker": look["marker"], "linestyle": (0, dash) if dash else "-", "linewidth": 1.2}


def dodged(policies: Iterable[str], by: float = 0.0) -> dict[str, float]:
    """Horizontal shifts, in percent of the experts, that put systems with equal values next to each other.

    Args:
        policies: the systems of a panel, in any order.
        by: added to every shift.
    """
    shown = [policy for policy in POLICIES if policy in set(policies)]
    return {policy: by + _DODGE * (place - (len(shown) - 1) / 2) for place, policy in enumerate(shown)}


def draw_hollow(
    axis: "Axes",
    predictions: pd.DataFrame,
    column: str,
    scale: float = 0.0,
    shifts: Mapping[str, float] | None = None,
    is_joined: bool = False,
) -> None:
    """Draw predictions as hollow markers, each system's shifted by so many percent of the experts, as from `dodged`."""
    for policy, part in predictions.groupby("policy", sort=False):
        mine = part.sort_values("expert_memory")
        look = look_of(str(policy)) | {"markerfacecolor": "white", "label": None} | ({} if is_joined else {"linestyle": ""})
        places = 100 * mine.expert_memory + (shifts or {}).get(str(policy), 0.0)
        axis.plot(places, (scale or scale_of(column)) * mine[column], **look, markersize=4.5, zorder=3)


def scale_of(quantity: str) -> float:
    """The factor from SI units to those of the axis."""
    return 1e3 if quantity == "tpot_s" else 1.0


def draw_band(axis: "Axes", bound: float) -> None:
    """Shade the band in which a prediction counts as correct."""
    axis.axhspan(-bound, bound, color="#DDDDDD", alpha=0.6, linewidth=0, zorder=0)
    axis.axhline(0, color="black", linewidth=0.8)


def set_memory_axis(axis: "Axes", expert_memories: Iterable[float], least_apart: float = 0.0) -> None:
    """Mark every size with a tick; from the largest down, sizes far enough apart also get a label."""
    shares = sorted({100 * share for share in expert_memories})
    named: list[float] = []
    for share in reversed(shares):
        if not named or named[-1] - share >= least_apart:
            named.append(share)
    axis.set_xticks(named, [f"{share:g}" for share in named], fontsize=6.5)
    axis.set(xlabel="experts in the cache (%)", xlim=(min(shares) - 6, max(shares) + 6))


def set_axes(axis: "Axes", quantity: str, expert_memories: Iterable[float]) -> None:
    """Memory sizes on the horizontal axis, the quantity's own scale on the vertical axis."""
    set_memory_axis(axis, expert_memories)
    if quantity == "tpot_s":
        axis.set_yscale("log")
        log_ticks(axis.yaxis)
    else:
        axis.set_ylim(0, 1.05)
