"""The panels of one model on a machine, or of the predictions for a card."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.machines.axes import (
    QUANTITIES,
    dodged,
    draw_band,
    draw_hollow,
    look_of,
    say,
    scale_of,
    set_axes,
    set_memory_axis,
)
from finemoe.artifact.machines.cells import SHARE_BOUND, TPOT_BOUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ERRORS = {"tpot_s": "error of TPOT (%)", "hit_rate": "error of hit rate", "link_use": "error of link use"}
_BOUNDS = {"tpot_s": TPOT_BOUND, "hit_rate": SHARE_BOUND, "link_use": SHARE_BOUND}

_FAR_ABOVE = 10  # times every system's TPOT: a baseline above this is cut
_BESIDE = 1.1  # percent of the experts from a measurement to its prediction, half of the way to the next system


@dataclass(frozen=True)
class ModelPanels:
    """One model's rows of `cells_table`, `read_foretold`, `foretold_table` and the table of baselines."""

    cells: pd.DataFrame
    predicted: pd.DataFrame
    compared: pd.DataFrame
    baselines: pd.DataFrame

    def draw_cells(self, axes: list["Axes"]) -> None:
        """Draw TPOT, hit rate and link use by memory; predictions for these systems are hollow."""
        predicted = self.predicted[self.predicted.policy.isin(self.cells.policy)] if len(self.cells) else self.predicted
        shifts, beside = (dodged(self.cells.policy, by) for by in (0.0, _BESIDE))
        for axis, (name, label) in zip(axes, QUANTITIES.items(), strict=True):
            scale, shown = scale_of(name), self.cells[self.cells[name].notna()]
            if shown.empty and predicted.empty:
                say(axis, f"{label.partition(' (')[0]}: not measured")
                continue
            for policy, part in shown.groupby("policy", sort=False):
                _line(axis, part.sort_values("expert_memory"), name, scale, shifts[str(policy)], **look_of(str(policy)))
            draw_hollow(axis, predicted, name, shifts=beside if len(shown) else None, is_joined=shown.empty)
            axis.set(ylabel=label, title="" if len(shown) else "predicted, not measured")
            set_axes(axis, name, [*shown.expert_memory, *predicted.expert_memory])
        self._draw_bounds(axes[0])

    def _draw_bounds(self, axis: "Axes") -> None:
        limit = self.cells[(self.cells.policy == "finemoe") & self.cells.limit_tpot_s.notna()].sort_values("expert_memory")
        axis.plot(100 * limit.expert_memory, 1e3 * limit.limit_tpot_s, color="black", linestyle=":", linewidth=1.2)
        self._draw_baselines(axis)

    def _draw_baselines(self, axis: "Axes") -> None:
        """Draw what is far above every system at the top, with its value, since its height would flatten their differences."""
        highest = 1e3 * self.cells.tpot_s_high.max()  # NaN without cells, which nothing is above
        is_far = 1e3 * self.baselines.tpot_s > _FAR_ABOVE * highest
        near, far = self.baselines[~is_far], self.baselines[is_far]
        axis.plot(100 * near.expert_memory, 1e3 * near.tpot_s, "kp", markersize=7)
        if len(far):
            top = 2.5 * highest
            axis.set_ylim(top=top)
            axis.plot(100 * far.expert_memory, [0.8 * top] * len(far), "kp", markersize=7)
            for share, tpot_s in zip(far.expert_memory, far.tpot_s, strict=True):
                place = (100 * share, 0.8 * top)
                axis.annotate(f"↑ {1e3 * tpot_s:,.0f}", place, (6, 0), textcoords="offset points", va="center", fontsize=6.5)

    def draw_errors(self, axes: list["Axes"]) -> None:
        """Draw the errors of the predictions, and the tolerated errors."""
        for axis, (name, label) in zip(axes, _ERRORS.items(), strict=True):
            if self.compared[f"{name}_error"].isna().all():
                say(axis, f"{label}: not measured")
                continue
            scale = 100.0 if name == "tpot_s" else 1.0
            draw_hollow(axis, self.compared, f"{name}_error", scale, is_joined=True)
            draw_band(axis, scale * _BOUNDS[name])
            axis.set_ylabel(label)
            set_memory_axis(axis, self.compared.expert_memory)


def _line(axis: "Axes", cells: pd.DataFrame, name: str, scale: float, shift: float, **look: Any) -> None:
    errors = [scale * (cells[name] - cells[f"{name}_low"]), scale * (cells[f"{name}_high"] - cells[name])]
    errors = [error.clip(lower=0) for error in errors]
    places = 100 * cells.expert_memory + shift
    axis.errorbar(
        places, scale * cells[name], yerr=errors, capsize=1.5, elinewidth=0.8, **look | {"linewidth": 0.8, "markersize": 5}
    )


def draw_foretold(axes: list["Axes"], predicted: pd.DataFrame) -> None:
    for axis, (name, label) in zip(axes, QUANTITIES.items(), strict=True):
        draw_hollow(axis, predicted, name, is_joined=True)
        axis.set_ylabel(label)
        set_axes(axis, name, predicted.expert_memory)
