"""The panels of one model on a machine, or of the predictions for a card."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.machines.axes import QUANTITIES, draw_band, draw_hollow, look_of, say, scale_of, set_axes, set_memory_axis
from finemoe.artifact.machines.cells import SHARE_BOUND, TPOT_BOUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ERRORS = {"tpot_s": "error of TPOT (%)", "hit_rate": "error of hit rate", "link_use": "error of link use"}
_BOUNDS = {"tpot_s": TPOT_BOUND, "hit_rate": SHARE_BOUND, "link_use": SHARE_BOUND}


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
        for axis, (name, label) in zip(axes, QUANTITIES.items(), strict=True):
            scale, shown = scale_of(name), self.cells[self.cells[name].notna()]
            if shown.empty and predicted.empty:
                say(axis, f"{label.partition(' (')[0]}: not measured")
                continue
            for policy, part in shown.groupby("policy", sort=False):
                _line(axis, part.sort_values("expert_memory"), name, scale, **look_of(str(policy)))
            draw_hollow(axis, predicted, name, shift=1.5 if len(shown) else 0.0, is_joined=shown.empty)
            axis.set(ylabel=label, title="" if len(shown) else "predicted, not measured")
            set_axes(axis, name, [*shown.expert_memory, *predicted.expert_memory])
        self._draw_bounds(axes[0])

    def _draw_bounds(self, axis: "Axes") -> None:
        limit = self.cells[(self.cells.policy == "finemoe") & self.cells.limit_tpot_s.notna()].sort_values("expert_memory")
        axis.plot(100 * limit.expert_memory, 1e3 * limit.limit_tpot_s, color="black", linestyle=":", linewidth=1.2)
        axis.plot(100 * self.baselines.expert_memory, 1e3 * self.baselines.tpot_s, "k*", markersize=8)

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


def _line(axis: "Axes", cells: pd.DataFrame, name: str, scale: float, **look: Any) -> None:
    errors = [scale * (cells[name] - cells[f"{name}_low"]), scale * (cells[f"{name}_high"] - cells[name])]
    errors = [error.clip(lower=0) for error in errors]
    axis.errorbar(100 * cells.expert_memory, scale * cells[name], yerr=errors, capsize=1.5, elinewidth=0.8, **look)


def draw_foretold(axes: list["Axes"], predicted: pd.DataFrame) -> None:
    for axis, (name, label) in zip(axes, QUANTITIES.items(), strict=True):
        draw_hollow(axis, predicted, name, is_joined=True)
        axis.set_ylabel(label)
        set_axes(axis, name, predicted.expert_memory)
