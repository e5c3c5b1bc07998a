"""Figure 3b: the entropy of expert activations in single iterations, over requests, and over shuffled requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from finemoe.artifact.analysis.entropy import entropy_table
from finemoe.artifact.figures.panels import in_order, legend_above, whiskers
from finemoe.artifact.figures.recordings import table_of
from finemoe.artifact.plotting import PALETTE, model_title, provenance, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTITIES = ("counts", "probabilities")
_KINDS = {
    "fine": ("iteration (fine)", PALETTE["fine"], ""),
    "coarse": ("request (coarse)", PALETTE["coarse"], "//"),
    "shuffled": ("shuffled across requests (null)", "#BBBBBB", ".."),
}
_WIDTH = 0.27  # of a bar


def entropies(traces: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """The rows of `analysis.entropy.entropy_table` for every trace, with the columns model and dataset."""
    return table_of(traces, lambda trace: entropy_table(trace, seed))


def draw(table: pd.DataFrame) -> "Figure":
    """Bars by counts above and by gate probabilities below, one column per model.

    Args:
        table: as `entropies` returns it.
    """
    use_style()
    models = in_order(table.model)
    fig, axes = plt.subplots(2, len(models), figsize=(2.5 * len(models), 4.4), squeeze=False)
    for row, of in zip(axes, _QUANTITIES, strict=True):
        for axis, model in zip(row, models, strict=True):
            _draw_panel(axis, table[(table.of == of) & (table.model == model)])
            axis.set_title(model_title(model) if of == _QUANTITIES[0] else "")
        row[0].set_ylabel(f"entropy of {of} (bits)")
    legend_above(fig, [axes[0][0]], ncols=2, extra={"log2 J: all J experts equally often": axes[0][0].lines[0]})
    provenance(fig, "recorded routing of the miniatures", "decode iterations", "whiskers: 95 % over requests")
    return fig


def _draw_panel(axis: "Axes", part: pd.DataFrame) -> None:
    datasets = in_order(part.dataset)
    most = part.max_bits.iloc[0]
    axis.axhline(most, color="black", linestyle="--", linewidth=0.8)
    for index, (kind, (label, colour, hatch)) in enumerate(_KINDS.items()):
        bars = part[part.kind == kind]
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "black", "ecolor": "black", "capsize": 2}
        places = np.arange(len(datasets)) + (index - 1) * _WIDTH
        axis.bar(places, bars.entropy_bits, _WIDTH, yerr=whiskers(bars, "entropy_bits"), label=label, **look)
    axis.set_xticks(range(len(datasets)), datasets)
    axis.set_ylim(0, 1.08 * most)
    axis.grid(axis="x", visible=False)
