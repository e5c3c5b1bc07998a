"""A grid of panels, the entries of legends that several series share, and settings in words."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from finemoe.artifact.figures.panels import percent
from finemoe.artifact.plotting import provenance, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_PUBLISHED_TITLES = {"mixtral-8x7b": "Mixtral-8x7B", "qwen1.5-moe-a2.7b": "Qwen1.5-MoE-A2.7B", "phi-3.5-moe": "Phi-3.5-MoE"}


def grid(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple["Figure", np.ndarray]:
    """A figure in the project's style.

    Args:
        width: of a panel, in inches. height: of all rows, in inches. options: as of `plt.subplots`.
    Returns:
        The figure and its [rows, columns] axes.
    """
    use_style()
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height), squeeze=False, **options)
    return fig, axes


def key(label: str, look: Mapping[str, Any]) -> tuple[str, Any]:
    """A legend's entry for what several series have in common, such as the marker of a dataset."""
    of_entry: dict[str, Any] = {"color": "black", "linestyle": "", "markersize": 4} | dict(look)
    return label, plt.Line2D([], [], **of_entry)


def marks(look: Mapping[str, Mapping[str, Any]], named: Callable[[str], str]) -> list[tuple[str, Any]]:
    """Entries for the colours and markers of `series_styles`, with the names that `named` gives them."""
    palette, markers = look["palette"], look["markers"]
    return [key(named(name), {"color": palette[name], "marker": markers[name]}) for name in palette]


def without_data(axis: "Axes", reason: str) -> None:
    """A panel that has only the reason why it is empty, no frame."""
    axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes, fontsize=8)
    axis.set_axis_off()


def published_title(name: str) -> str:
    """A published model's name from its name in data/models/configs."""
    return _PUBLISHED_TITLES.get(name, name)


def distances_in_words(distances: Iterable[int]) -> str:
    """Prefetch distances, for the line below a figure."""
    return f"d = {', '.join(str(distance) for distance in sorted(set(distances)))}"


def replay_provenance(fig: "Figure", expert_memory: float, prefetch_distances: Iterable[int], store_capacity: int) -> None:
    """The line below a figure that replays systems over an instant link, with a panel of real routing.

    Args:
        expert_memory: share of all routed experts. prefetch_distances: d of each model, layers. store_capacity: C, maps.
    """
    settings = f"C = {store_capacity} (real panel: 25 %, d = 3, C = 1000)"
    words = percent(expert_memory), distances_in_words(prefetch_distances), settings, "whiskers: 95 % over requests"
    provenance(fig, "replay of recorded routing, instant link", *words)
