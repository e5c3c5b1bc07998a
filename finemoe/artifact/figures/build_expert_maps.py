"""How well an Expert Map Store covers requests that it does not hold (notebooks/stages/2_build_expert_maps.ipynb)."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from finemoe.artifact.plotting import provenance, series_styles, use_style
from finemoe.artifact.progress import progress
from finemoe.maps.search import TrajectorySearch
from finemoe.maps.store import ExpertMapStore
from finemoe.traces import DECODE, RoutingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEARCHES = ["semantic", "trajectory"]
_BLOCK_ROWS = 256


def filled_store(history: RoutingTrace, store_capacity: int, prefetch_distance: int) -> ExpertMapStore:
    """A store that has seen every iteration of a history, in order; once full, it replaces the most redundant map (RDY)."""
    store = ExpertMapStore(
        history.num_layers,
        history.num_experts,
        history.embeddings(slice(0, 1)).shape[1],
        capacity=store_capacity,
        prefetch_distance=prefetch_distance,
        model=history.model,
    )
    for begin in progress(range(0, history.num_rows, _BLOCK_ROWS), "filling the store", f"{_BLOCK_ROWS} maps"):
        rows = slice(begin, begin + _BLOCK_ROWS)
        store.add(history.maps(rows), history.embeddings(rows))
    return store


def coverage(store: ExpertMapStore, served: RoutingTrace) -> pd.DataFrame:
    """The nearest stored record of every served iteration.

    Returns:
        Rows (request, phase, semantic, trajectory): cosines of the embeddings, and of the whole maps.
    """
    search = TrajectorySearch(store, served.num_rows)
    for layer in progress(range(served.num_layers), "searching", "layer"):
        search.observe(layer, np.ascontiguousarray(served.maps()[:, layer]))
    _, trajectory = search.nearest()
    _, semantic = store.nearest_embeddings(served.embeddings())
    return pd.DataFrame(
        {
            "request": np.repeat(served.request_ids, np.diff(served.offsets)),
            "phase": np.where(served.phase == DECODE, "decode", "prefill"),
            "semantic": semantic,
            "trajectory": trajectory,
        }
    )


def request_table(covered: pd.DataFrame, store: ExpertMapStore, history_rows: int) -> pd.DataFrame:
    """Mean and least similarity by request and phase, with the sizes of the store.

    Args:
        covered: as from `coverage`. history_rows: iterations that were entered.
    """
    table = covered.groupby(["request", "phase"], sort=True)[_SEARCHES].agg(["mean", "min"])
    table.columns = ["_".join(names) for names in table.columns]
    sizes = {"records": len(store), "history_rows": history_rows, "store_bytes": store.nbytes, "capacity": store.capacity}
    return table.reset_index().assign(**sizes)


def draw(covered: pd.DataFrame, name: str, store_capacity: int, num_maps: int) -> "Figure":
    """Cumulative distributions of the similarities, prefill and decode apart.

    Args:
        covered: as from `coverage`. name: of the trace. store_capacity: C. num_maps: how many the store holds.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    use_style()
    long = covered.melt(["request", "phase"], _SEARCHES, var_name="search", value_name="similarity")
    fig, axes = plt.subplots(1, 2, sharey=True)
    for axis, phase in zip(axes, ["prefill", "decode"], strict=True):
        part = long[long.phase == phase]
        sns.ecdfplot(part, x="similarity", hue="search", ax=axis, palette=series_styles(_SEARCHES)["palette"])
        axis.set(xlabel="cosine with the nearest stored record", title=phase)
    axes[0].set_ylabel("share of served iterations")
    provenance(fig, "recorded routing", name, f"C = {store_capacity}, {num_maps} maps held")
    return fig
