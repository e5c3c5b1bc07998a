"""What the engine costs with every expert resident (notebooks/studies/engine_overhead.ipynb)."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"default": "Transformers' default", "on-demand": "offloaded, on-demand (LRU)", "finemoe": "offloaded, FineMoE"}


def draw(table: pd.DataFrame) -> "Figure":
    """Decode time over eager's, one panel for each batch size.

    Args:
        table: rows (variant, ratio, low, high, num_rounds, model, batch_size, machine), as `pipeline.timing.ratios` finds them.
    """
    import matplotlib.pyplot as plt

    use_style()
    sizes = list(dict.fromkeys(table.batch_size))
    fig, axes = plt.subplots(1, len(sizes), figsize=(3.6 * len(sizes), 2.8), sharey=True, squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        _draw_size(axis, table[table.batch_size == size], list(dict.fromkeys(table.model)), list(dict.fromkeys(table.variant)))
        axis.set_title(f"batch size {size}")
    axes[0][0].set_ylim(bottom=0)  # of both panels, now that everything is drawn
    axes[0][0].set_ylabel("decode time / eager's")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    rounds = f"at most {table.num_rounds.max()} rounds in turn"
    details = (table.machine.iloc[0], "every expert resident", rounds, "95 % intervals of the median", "line: eager")
    provenance(fig, "measured", *details)
    return fig


def _draw_size(axis: "Axes", table: pd.DataFrame, models: list[str], variants: list[str]) -> None:
    """Models next to each other, and their variants next to each other."""
    styles, offsets = series_styles(variants), 0.2 * (np.arange(len(variants)) - (len(variants) - 1) / 2)
    for offset, variant in zip(offsets, variants, strict=True):
        part = table[table.variant == variant]
        places = [models.index(model) + offset for model in part.model]
        errors = [(part.ratio - part.low).clip(lower=0), (part.high - part.ratio).clip(lower=0)]
        look = {"color": styles["palette"][variant], "fmt": styles["markers"][variant]}
        axis.errorbar(places, part.ratio, errors, capsize=3, label=_NAMES.get(variant, variant), **look)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xticks=range(len(models)), xlim=(-0.5, len(models) - 0.5))
    axis.set_xticklabels([model_title(model).replace(" miniature (", "\nminiature (") for model in models], fontsize=6.5)
