"""Figure 3c: the entropy of activation counts while the iterations of a request are summed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.analysis.entropy import running_entropy
from finemoe.artifact.figures.panels import in_order, legend_above
from finemoe.artifact.figures.recordings import table_of
from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NULL: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 0.8}


def running_entropies(traces: Sequence[str], num_iterations: int, seed: int = 0) -> pd.DataFrame:
    """The rows of `analysis.entropy.running_entropy` for every trace, with the columns model and dataset."""
    return table_of(traces, lambda trace: running_entropy(trace, num_iterations, seed))


def draw(table: pd.DataFrame) -> "Figure":
    """Entropy against the number of iterations, one panel per dataset and one line per model.

    Args:
        table: as `running_entropies` returns it.
    """
    use_style()
    datasets, models = in_order(table.dataset), in_order(table.model)
    styles = series_styles(models)
    fig, axes = plt.subplots(1, len(datasets), figsize=(3.6 * len(datasets), 2.9), sharey=True, squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for model in models:
            look = {"color": styles["palette"][model], "marker": styles["markers"][model], "label": model_title(model)}
            _draw_curve(axis, table[(table.model == model) & (table.dataset == dataset)], look)
        axis.set(title=dataset, xlabel="decode iterations summed")
    axes[0][0].set_ylabel("entropy of counts (bits)")
    legend_above(fig, axes[0], ncols=2, extra={"null: shuffled across requests": plt.Line2D([], [], **_NULL)})
    provenance(fig, "recorded routing of the miniatures", "bands: 95 % intervals over requests")
    return fig


def _draw_curve(axis: "Axes", part: pd.DataFrame, look: dict[str, Any]) -> None:
    real, null = part[part.kind == "requests"], part[part.kind == "shuffled"]
    axis.plot(real.iterations, real.entropy_bits, markevery=4, **look)
    axis.fill_between(real.iterations, real.low, real.high, color=look["color"], alpha=0.25, linewidth=0)
    axis.plot(null.iterations, null.entropy_bits, **_NULL)
