"""The effect of a setting on a model and machine, fast enough for a slider (notebooks/tour/4_explore.ipynb).

This module contains the replay and the figure, which is a function of the replay's table; the widgets are in
`analysis.exploring_panel`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.plotting import provenance, use_style
from finemoe.maps.store import ExpertMapStore
from finemoe.policies.finemoe import store_from
from finemoe.simulation.cost import size_of
from finemoe.simulation.replay import replay, replay_setup
from finemoe.simulation.systems import System, left_out
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SYSTEMS = {  # systems that replay a dozen requests within two seconds
    "on-demand (LRU)": System("on-demand"),
    "on-demand (LFU)": System("on-demand", "lfu"),
    "DeepSpeed-Inference": System("deepspeed-inference"),
    "Mixtral-Offloading": System("mixtral-offloading"),
    "ProMoE": System("promoe", needs_weights=True),
    "MoE-Infinity": System("moe-infinity"),
    "FineMoE": System("finemoe", needs_weights=True),
    "Belady (on demand)": System("on-demand", "belady"),
    "oracle": System("oracle"),
}
FIRST_SYSTEMS = ("on-demand (LRU)", "FineMoE", "oracle")
_WIDTH = 8.2  # of the figure, in inches
_COLORS = {"FineMoE": "#0072B2", "oracle": "white"}


@dataclass(frozen=True)
class Setting:
    """The positions of the sliders.

    Attributes:
        expert_memory: share of all routed experts in the cache.
        link_gb_per_s: bandwidth of every device's link.
        prefetch_distance: d, in layers.
        store_capacity: C, in maps.
    """

    expert_memory: float = 0.25
    link_gb_per_s: float = 26.0
    prefetch_distance: int = 3
    store_capacity: int = 1000


SLOWEST = Setting(expert_memory=0.05, link_gb_per_s=1.0)
FASTEST = Setting(expert_memory=1.0, link_gb_per_s=300.0)


class Explorer:
    """A trace's served requests on a testbed, replayed at any setting.

    Args:
        trace: with the splits history and served.
        testbed: a name in data/hardware, or the path of a YAML file.
        num_requests: number of served requests to replay.
    """

    def __init__(self, trace: RoutingTrace, testbed: str, num_requests: int, seed: int = 0) -> None:
        served = trace.split("served")
        self._history, self._served = trace.split("history"), served.select(range(min(num_requests, served.num_requests)))
        self._testbed, self._seed = Testbed.load(testbed), seed
        self._size = size_of(None, trace.num_layers, trace.num_experts, trace.top_k)
        self._store, self._row = cache(self._filled_store), cache(self._replayed)
        self.title = f"{self._size.name} on {self._testbed.title}"

    def systems(self, prefetch_distance: int = 3) -> list[str]:
        """The systems of SYSTEMS for which the trace has the required data."""
        missing = left_out(self._served, SYSTEMS, prefetch_distance)
        return [name for name in SYSTEMS if name not in missing]

    def replay(
        self,
        expert_memory: float,
        link_gb_per_s: float,
        prefetch_distance: int,
        store_capacity: int,
        systems: Sequence[str] = FIRST_SYSTEMS,
        report: Callable[[str], None] = lambda name: None,
    ) -> pd.DataFrame:
        """TTFT, TPOT and hit rate at one setting; every device has its own link, and the host can feed all of them.

        Args:
            expert_memory, link_gb_per_s, prefetch_distance, store_capacity: as in `Setting`.
            systems: names in SYSTEMS.
            report: called with each name before it is replayed.
        Returns:
            Rows (system, ttft_ms, tpot_ms, hit_rate, wasted_share); wasted_share is the share of the moved bytes evicted unused.
        Raises:
            FinemoeError: the machine does not have enough memory.
        """
        setting, rows = Setting(expert_memory, link_gb_per_s, prefetch_distance, store_capacity), []
        for name in systems:
            report(name)
            rows.append(self._row(name, setting))
        return pd.DataFrame(rows)

    def tpot_limits_ms(self) -> tuple[float, float]:
        """Limits of the TPOT axis for all settings: everything resident, and the slowest system at SLOWEST."""
        slowest = "DeepSpeed-Inference", "on-demand (LRU)"
        least = self._row("oracle", FASTEST)["tpot_ms"]
        return least, max(self._row(name, SLOWEST)["tpot_ms"] for name in slowest)

    def _replayed(self, name: str, setting: Setting) -> dict[str, Any]:
        system, link = SYSTEMS[name], setting.link_gb_per_s * 1e9
        testbed = replace(self._testbed, link_bytes_per_s=link, host_bytes_per_s=self._testbed.devices * link)
        distance, capacity = setting.prefetch_distance, setting.store_capacity
        options: dict[str, Any] = {"prefetch_distance": distance, "store_capacity": capacity, "seed": self._seed}
        history = self._store(distance, capacity) if system.policy == "finemoe" else self._history
        if system.eviction:
            options["eviction"] = system.eviction
        report = replay(self._served, system.policy, setting.expert_memory, testbed, history, **options)
        moved = max(1, report.demand_bytes + report.prefetched_bytes)
        times = {"ttft_ms": 1e3 * report.ttft_s, "tpot_ms": 1e3 * report.tpot_s}
        return {"system": name, **times, "hit_rate": report.hit_rate, "wasted_share": report.wasted_bytes / moved}

    def _filled_store(self, prefetch_distance: int, store_capacity: int) -> ExpertMapStore:
        """A store with the last maps of the history that fit; filling by the paper's rule is too slow for a slider."""
        history = self._history
        rows = slice(max(0, history.num_rows - store_capacity), history.num_rows)
        store = store_from(replay_setup(history, None, prefetch_distance, store_capacity, self._seed))
        store.add(history.maps(rows), history.embeddings(rows) if store.embedding_dim else None)
        return store


def explore_figure(
    table: pd.DataFrame, title: str, tpot_limits_ms: tuple[float, float] | None = None, before: pd.DataFrame | None = None
) -> "Figure":
    """TPOT and hit rate at one setting, with the values before the last change as hollow marks.

    Args:
        table: as returned by `Explorer.replay`.
        title: title of the figure.
        tpot_limits_ms: limits of the axis, which keep it fixed while settings change.
        before: the same table for the previous setting.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    use_style()
    height = 0.95 + 0.26 * len(table)
    fig, axes = plt.subplots(1, 2, figsize=(_WIDTH, height), sharey=True, layout="none")
    # Fixed margins, in inches: a layout that adapts to the numbers would move the axes.
    fig.subplots_adjust(left=1.45 / _WIDTH, right=1 - 1.15 / _WIDTH, bottom=0.62 / height, top=1 - 0.3 / height, wspace=0.62)
    for axis, column, label in zip(axes, ("tpot_ms", "hit_rate"), ("TPOT (ms)", "expert hit rate"), strict=True):
        _draw_values(axis, table, column, before)
        axis.set_xlabel(label)
    low, high = tpot_limits_ms or (table.tpot_ms.min(), table.tpot_ms.max())
    axes[0].set(xscale="log", xlim=(0.8 * low, 1.25 * high))
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 300 * low else (1,)))
    axes[0].xaxis.set_major_formatter("{x:,.0f}")
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[1].set_xlim(0, 1.02)
    axes[1].set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes[0].set_ylim(len(table) - 0.5, -0.5)
    fig.suptitle(title, fontsize=8)
    provenance(fig, "simulated", "hollow: before the last change")
    return fig


def _draw_values(axis: "Axes", table: pd.DataFrame, column: str, before: pd.DataFrame | None) -> None:
    """Draw a mark for each system, a line to it from its previous position, and both numbers on the right."""
    old = {} if before is None else dict(zip(before.system, before[column], strict=True))
    for row, (system, value) in enumerate(zip(table.system, table[column], strict=True)):
        text = _number(value)
        if system in old:
            axis.plot([old[system], value], [row, row], color="#9A9A9A", linewidth=1.2, zorder=1)
            axis.plot(old[system], row, "o", markersize=7, markerfacecolor="white", markeredgecolor="#9A9A9A", zorder=2)
            text += f" (was {_number(old[system])})"
        color = _COLORS.get(str(system), "#8C8C8C")
        axis.plot(value, row, "o", markersize=7, color=color, markeredgecolor="black", markeredgewidth=0.7, zorder=3)
        axis.text(1.01, row, text, va="center", fontsize=7, transform=axis.get_yaxis_transform())
    axis.set_yticks(range(len(table)), table.system)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
