"""What a setting does to a model on a machine, fast enough to move a slider (notebooks/tour/4_explore.ipynb)."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.plotting import provenance, use_style
from finemoe.maps.store import ExpertMapStore
from finemoe.paths import is_headless
from finemoe.policies.finemoe import store_from
from finemoe.simulation.cost import size_of
from finemoe.simulation.replay import replay, replay_setup
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_START: dict[str, Any] = {"expert_memory": 0.25, "link_gb_per_s": 26.0, "prefetch_distance": 3, "store_capacity": 1000}
_POLICIES = {"on-demand (LRU)": "on-demand", "FineMoE": "finemoe", "oracle": "oracle"}


class Explorer:
    """A trace's served requests on a testbed, replayed at any setting.

    Args:
        trace: with the splits history and served. testbed: a name in data/hardware, or the path of a YAML file.
        num_requests: how many served requests are replayed.
    """

    def __init__(self, trace: RoutingTrace, testbed: str, num_requests: int, seed: int = 0) -> None:
        served = trace.split("served")
        self._history, self._served = trace.split("history"), served.select(range(min(num_requests, served.num_requests)))
        self._testbed, self._seed = Testbed.load(testbed), seed
        self._size = size_of(None, trace.num_layers, trace.num_experts, trace.top_k)
        self._store = cache(self._filled_store)
        self.title = f"{self._size.name} on {self._testbed.title}"

    def replay(self, expert_memory: float, link_gb_per_s: float, prefetch_distance: int, store_capacity: int) -> pd.DataFrame:
        """TTFT, TPOT and hit rate at one setting; every device has a link of its own to a host that feeds all of them.

        Returns:
            Rows (system, ttft_ms, tpot_ms, hit_rate, wasted_share), wasted_share: of what was moved, evicted unused.
        Raises:
            FinemoeError: the machine has not the memory.
        """
        link = link_gb_per_s * 1e9
        testbed = replace(self._testbed, link_bytes_per_s=link, host_bytes_per_s=self._testbed.devices * link)
        rows = []
        for name, policy in _POLICIES.items():
            history = self._store(prefetch_distance, store_capacity) if policy == "finemoe" else None
            options: dict[str, Any] = {
                "prefetch_distance": prefetch_distance,
                "store_capacity": store_capacity,
                "seed": self._seed,
            }
            report = replay(self._served, policy, expert_memory, testbed, history, **options)
            moved = max(1, report.demand_bytes + report.prefetched_bytes)
            times = {"ttft_ms": 1e3 * report.ttft_s, "tpot_ms": 1e3 * report.tpot_s}
            rows.append({"system": name, **times, "hit_rate": report.hit_rate, "wasted_share": report.wasted_bytes / moved})
        return pd.DataFrame(rows)

    def show(self, expert_memory: float, link_gb_per_s: float, prefetch_distance: int, store_capacity: int) -> None:
        """Draw one setting, for a slider to call."""
        import matplotlib.pyplot as plt

        explore_figure(self.replay(expert_memory, link_gb_per_s, prefetch_distance, store_capacity), self.title)
        plt.show()

    def panel(self) -> Any:
        """Sliders beside the picture they move; just the picture where a notebook runs without a front end."""
        if is_headless():
            return self.show(**_START)
        from ipywidgets import FloatLogSlider, FloatSlider, HBox, IntSlider, SelectionSlider, VBox, interactive_output

        look = {"continuous_update": False, "style": {"description_width": "initial"}}
        capacities, start = [60, 125, 250, 500, 1000, 2000], _START
        sliders = {
            "expert_memory": FloatSlider(
                start["expert_memory"], min=0.05, max=1, step=0.05, description="memory (share)", **look
            ),
            "link_gb_per_s": FloatLogSlider(start["link_gb_per_s"], min=0, max=2.5, step=0.1, description="link (GB/s)", **look),
            "prefetch_distance": IntSlider(start["prefetch_distance"], min=1, max=8, description="distance d", **look),
            "store_capacity": SelectionSlider(
                options=capacities, value=start["store_capacity"], description="capacity C", **look
            ),
        }
        return HBox([VBox(list(sliders.values())), interactive_output(self.show, sliders)])

    def _filled_store(self, prefetch_distance: int, store_capacity: int) -> ExpertMapStore:
        """The last maps of the history that fit: filling by the paper's rule takes longer than a slider may."""
        history = self._history
        rows = slice(max(0, history.num_rows - store_capacity), history.num_rows)
        store = store_from(replay_setup(history, None, prefetch_distance, store_capacity, self._seed))
        store.add(history.maps(rows), history.embeddings(rows) if store.embedding_dim else None)
        return store


def explore_figure(table: pd.DataFrame, title: str) -> "Figure":
    """TPOT and hit rate of one setting as bars."""
    import matplotlib.pyplot as plt

    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 2.2), sharey=True)
    for axis, column, label in zip(axes, ("tpot_ms", "hit_rate"), ("TPOT (ms)", "expert hit rate"), strict=True):
        bars = axis.barh(table.system, table[column], color=["#8C8C8C", "#0072B2", "white"], edgecolor="black", linewidth=0.6)
        axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axis.set_xlabel(label)
        axis.margins(x=0.15)
    axes[1].set_xlim(0, 1.12)
    axes[0].invert_yaxis()
    fig.suptitle(title, fontsize=8)
    provenance(fig, "simulated")
    return fig
