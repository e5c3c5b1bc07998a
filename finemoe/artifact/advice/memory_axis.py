"""The axis shared by most figures, expert memory, and the marks on it: cliff, knee, and the end of the machine's memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from finemoe.advice.result import Advice
from finemoe.artifact.plotting import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 1 << 30
# Hatched, because the bands of intervals are light grey in print, too.
NOT_FITTING: dict[str, Any] = {"facecolor": "#F8F8F8", "edgecolor": "#C4C4C4", "hatch": "//", "linewidth": 0}
_DASHES = {"cliff": (0, (1, 1.5)), "knee": (0, (4, 2))}


@dataclass(frozen=True)
class MemoryAxis:
    """Converts numbers of experts to positions on the axis.

    Attributes:
        per_slot: one expert in units of the axis.
        percent_per_slot: one expert as a percentage of all experts.
        label: label of the axis.
    """

    per_slot: float
    percent_per_slot: float
    label: str

    @classmethod
    def of(cls, advice: Advice, in_percent: bool = False) -> "MemoryAxis":
        """In GiB; in percent of all experts if `in_percent` is set or the size of an expert is unknown."""
        percent, each = 100 / advice.trace["all_experts"], advice.trace["expert_bytes"]
        if in_percent or each is None:
            return cls(percent, percent, "expert memory (% of all experts)")
        return cls(each / GIB, percent, "expert memory (GiB)")

    @property
    def is_percent(self) -> bool:
        """Whether the axis itself shows shares."""
        return self.per_slot == self.percent_per_slot

    def apply(self, axis: "Axes", slots: tuple[int, int]) -> None:
        """Scale the axis logarithmically from the first to the second size; an axis in bytes also shows shares at the top."""
        low, high = (one * self.per_slot for one in slots)
        axis.set(xscale="log", xlim=(low / 1.06, high * 1.06), xlabel=self.label)
        log_ticks(axis.xaxis)
        if self.is_percent:
            return
        ratio = self.percent_per_slot / self.per_slot
        forth, back = partial(np.multiply, ratio), partial(np.multiply, 1 / ratio)
        above = axis.secondary_xaxis("top", functions=(forth, back))
        above.set_xlabel("% of all experts", fontsize=7)
        above.tick_params(labelsize=6.5)
        log_ticks(above.xaxis)

    def shade(self, axis: "Axes", advice: Advice) -> None:
        """Hatch sizes that do not fit into the machine's memory; call after `apply`."""
        if advice.machine is None:
            return
        room = advice.machine["room_bytes"] / advice.machine["expert_bytes"] * self.per_slot
        low, high = axis.get_xlim()
        if room < high:
            axis.axvspan(max(room, low), high, zorder=0, label="does not fit", **NOT_FITTING)

    def mark(self, axes: Sequence["Axes"], advice: Advice) -> None:
        """Draw vertical lines at cliff and knee if they are in view, with their names in a strip above all data; call last.

        Args:
            axes: several axes only if they share the vertical axis.
            advice: the advice with cliff and knee.
        """
        places = {"cliff": advice.cliff["cycle"] * self.per_slot, "knee": advice.knee["slots"] * self.per_slot}
        first, second = sorted(places, key=lambda kind: places[kind])
        _raise_top(axes[0])
        for axis in axes:
            low, high = axis.get_xlim()
            look: dict[str, Any] = {"va": "top", "fontsize": 7, "transform": axis.get_xaxis_transform()}
            for kind, text, side in ((first, f"{first} ", "right"), (second, f" {second}", "left")):
                if low <= places[kind] <= high:
                    axis.axvline(places[kind], color="#555555", linewidth=0.8, linestyle=_DASHES[kind], zorder=1)
                    axis.text(places[kind], 0.985, text, ha=side, **look)


def _raise_top(axis: "Axes") -> None:
    """Make room for a line of text above the data, on a linear or a logarithmic axis."""
    change = axis.yaxis.get_transform()
    low, high = (float(value) for value in change.transform(list(axis.get_ylim())))
    axis.set_ylim(top=float(change.inverted().transform([high + 0.07 * (high - low)])[0]))


def sizes_in_view(advice: Advice) -> tuple[int, int]:
    """The smallest and the largest size shown in figures: the timed sizes or, without any, from half a token's cycle up."""
    timed = {row["slots"] for row in advice.times}
    least = min(timed) if timed else min(advice.cliff["cycle"] // 2, advice.trace["all_experts"] // 50)
    return max(1, least), int(advice.trace["all_experts"])
