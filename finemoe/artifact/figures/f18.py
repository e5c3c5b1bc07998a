"""Figure 18: memory of the Expert Map Store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import NullLocator

from finemoe.artifact.figures.grids import grid, key, marks, published_title
from finemoe.artifact.figures.panels import in_order, legend_above
from finemoe.artifact.plotting import log_ticks, provenance, series_styles
from finemoe.artifact.verdicts.store import REPORTED_MB, WHOLE
from finemoe.maps.store import ExpertMapStore
from finemoe.simulation.cost import size_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def store_table(published: Sequence[str], capacities: Sequence[int]) -> pd.DataFrame:
    """Memory of allocated stores, with and without embeddings: rows (model, content, capacity, store_mb).

    Args:
        published: models in data/models/configs. capacities: C, in maps.
    """
    rows = []
    for name in published:
        size = size_named(name)
        for content, width in (("maps", 0), (WHOLE, size.hidden_size)):
            for capacity in capacities:
                store = ExpertMapStore(size.num_layers, size.num_experts, width, capacity)
                rows.append({"model": name, "content": content, "capacity": capacity, "store_mb": store.nbytes / 1e6})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> "Figure":
    """Draw Figure 18 from the rows of `store_table`."""
    fig, axes = grid(1, 1, 5.4, 3.9)
    look, dashes = series_styles(in_order(table.model)), {WHOLE: "-", "maps": ":"}
    axis = axes[0][0]
    for (name, content), line in table.groupby(["model", "content"], sort=False):
        of_model = {"color": look["palette"][str(name)], "marker": look["markers"][str(name)]}
        axis.plot(line.capacity / 1e3, line.store_mb, linestyle=dashes[str(content)], **of_model)
    axis.axhline(REPORTED_MB, color="#888888", linewidth=1, linestyle="--")
    axis.annotate(f"the paper's {REPORTED_MB} MB", (1, 1.08 * REPORTED_MB), fontsize=7, color="#555555")
    axis.set(xscale="log", yscale="log", xlabel="store capacity C (thousand maps)", ylabel="memory (MB)")
    capacities = in_order(table.capacity)
    axis.set_xticks([c / 1e3 for c in capacities], [f"{c / 1e3:g}" for c in capacities])
    axis.xaxis.set_minor_locator(NullLocator())
    log_ticks(axis.yaxis)
    contents = [key(content, {"linestyle": dash}) for content, dash in dashes.items()]
    legend_above(fig, [], ncols=3, extra=dict(marks(look, published_title) + contents))
    provenance(fig, "computed (bytes of the allocated arrays)", "two bytes a value")
    return fig
