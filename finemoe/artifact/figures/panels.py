"""What the panels of several figures share: whiskers for intervals, titles, legends, and a text in place of missing data."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.plotting import model_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# A vertical line that marks a value; no system's line has its dashes.
REFERENCE_LINE: dict[str, Any] = {"color": "#888888", "linestyle": (0, (8, 2, 1, 2, 1, 2)), "linewidth": 1}


def in_order(values: Iterable[Any]) -> list[Any]:
    """The different values, in the order in which they first occur."""
    return list(dict.fromkeys(values))


def whiskers(
    table: pd.DataFrame, quantity: str, low: str = "low", high: str = "high", scale: float = 1.0
) -> list["pd.Series[float]"]:
    """Distances from the values of a column to the bounds of their intervals, as `errorbar` takes them."""
    below, above = table[quantity] - table[low], table[high] - table[quantity]
    return [scale * below.clip(lower=0), scale * above.clip(lower=0)]


def legend_above(fig: "Figure | SubFigure", axes: Iterable["Axes"], ncols: int, extra: Mapping[str, Any] | None = None) -> None:
    """One legend above all panels, with every label once.

    Args:
        extra: further handles, by label.
    """
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found |= extra or {}
    fig.legend(found.values(), found.keys(), loc="outside upper center", ncols=ncols)


def panel_title(model: str) -> str:
    """A model's name and its L×J/K, in two lines."""
    return model_title(model).replace(" (", "\n(")


def explain(axis: "Axes", reason: str) -> None:
    """A panel without data: the reason in its place."""
    axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes, fontsize=8)
    axis.set(xticks=[], yticks=[])


def percent(share: float) -> str:
    """A share of the experts, for the line below a figure."""
    return f"{share:.0%} of the experts"
