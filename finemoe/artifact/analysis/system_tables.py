"""Comparisons of systems as tables (Figs. 4, 14a, 14b), and the systems that appear only there: ablations, and every rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.progress import progress
from finemoe.intervals import Interval, bootstrap_ratio
from finemoe.report import Report
from finemoe.simulation.comparison import comparison_rows, system_reports
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.systems import System
from finemoe.traces import RoutingTrace

ABLATION = {
    "on-demand (LRU)": System("on-demand"),
    "Speculate": System("promoe", "finemoe", {"predictor": "speculative"}),
    "Learn": System("promoe", "finemoe"),
    "Hit count": System("moe-infinity", "finemoe"),
    "Map (T)": System("finemoe", "finemoe", {"semantic": False, "similarity_aware": False}),
    "Map (T+S)": System("finemoe", "finemoe", {"similarity_aware": False}, needs_embeddings=True),
    "Map (T+S+δ)": System("finemoe", "finemoe", {}, needs_embeddings=True, needs_gates=True),
    "Belady (on demand)": System("on-demand", "belady"),
}
EVICTIONS = ("lru", "lfu", "lfu-aged", "lfru", "least-stale", "least-stale-interval", "next-use", "finemoe", "belady")


def system_table(
    history: RoutingTrace,
    served: RoutingTrace,
    systems: Mapping[str, System],
    expert_memories: Sequence[float],
    prefetch_distance: int,
    store_capacity: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every system at every memory size, as a table. Systems that need data missing from the trace are left out (`left_out` gives
    the reasons).

    Args:
        history, served, expert_memories, prefetch_distance, store_capacity, seed: as in `system_reports`.
        systems: systems by name.
    Returns:
        The rows of `comparison_rows`.
    """
    settings: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "seed": seed}
    known = Knowledge(served, history, **settings)
    found: dict[tuple[str, float], Report] = {}
    for part in progress(_with_one_policy(systems), "replaying", "policy"):
        found |= system_reports(known, served, part, expert_memories, **settings)
    ordered = {(name, memory): found[name, memory] for name in systems for memory in expert_memories if (name, memory) in found}
    return table_of(ordered, seed)


def _with_one_policy(systems: Mapping[str, System]) -> list[dict[str, System]]:
    """Groups with the same policy and options: `system_reports` evaluates each once for all its eviction rules."""
    groups: dict[str, dict[str, System]] = {}
    for name, system in systems.items():
        groups.setdefault(f"{system.policy} {sorted(system.options.items())}", {})[name] = system
    return list(groups.values())


def table_of(reports: Mapping[tuple[str, float], Report], seed: int = 0) -> pd.DataFrame:
    """The rows of `system_table`."""
    return pd.DataFrame(comparison_rows(reports, seed))


def gain(better: Report, worse: Report, seed: int = 0) -> Interval:
    """Difference of the reports' hit rates, with an interval over the requests that both served (paired)."""
    hits = [[float(one.hits - other.hits)] for one, other in zip(better.requests, worse.requests, strict=True)]
    accesses = [[float(one.accesses)] for one in better.requests]
    found = bootstrap_ratio(np.array(hits), np.array(accesses), seed=seed)
    return Interval(found.value[0], found.low[0], found.high[0])


def eviction_systems(rules: Sequence[str]) -> dict[str, System]:
    """Every rule with and without FineMoE's prefetches, named "rule, on demand" and "rule, prefetching" (Fig. 14b)."""
    kinds = {"prefetching": "finemoe", "on demand": "on-demand"}
    return {f"{rule}, {kind}": System(policy, rule) for kind, policy in kinds.items() for rule in rules}
