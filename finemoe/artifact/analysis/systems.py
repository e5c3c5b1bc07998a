"""The paper's systems side by side on recorded routing, with an instant link: hit rates with intervals, and every byte beside.

A free link flatters whoever loads most, so each row carries what it moved: experts loaded per expert demanded, on demand and
ahead, and how much of the latter was evicted unused (Figs. 4, 14a, 14b and the comparison of systems).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from finemoe.errors import FinemoeError
from finemoe.metrics import Interval, bootstrap_ratio
from finemoe.policies import policy_named
from finemoe.policies.finemoe import store_from
from finemoe.report import Report
from finemoe.simulation.replay import replay_setup, sweep
from finemoe.traces import RoutingTrace


@dataclass(frozen=True)
class System:
    """One line of a comparison: a policy with its options under an eviction rule (None: the policy's own).

    Attributes:
        needs_embeddings, needs_gates: whether it says nothing where a trace holds no semantic embeddings, or only the K
            activated experts' probabilities (top-k traces, DESIGN 4).
    """

    policy: str
    eviction: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_embeddings: bool = False
    needs_gates: bool = False

    def strides(self, prefetch_distance: int) -> tuple[int, ...]:
        """The lookahead strides that a trace must hold for it."""
        is_speculative = self.options.get("predictor") == "speculative"
        return (prefetch_distance,) if is_speculative else policy_named(self.policy, is_replay=True).lookahead


SYSTEMS = {
    "on-demand (LRU)": System("on-demand"),
    "on-demand (LFU)": System("on-demand", "lfu"),
    "DeepSpeed-Inference": System("deepspeed-inference"),
    "Mixtral-Offloading": System("mixtral-offloading"),
    "ProMoE": System("promoe"),
    "ProMoE (speculative)": System("promoe", None, {"predictor": "speculative"}),
    "MoE-Infinity": System("moe-infinity"),
    "FineMoE": System("finemoe"),
    "Belady (on demand)": System("on-demand", "belady"),
}
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
EVICTIONS = ("lru", "lfu", "lfu-aged", "lfru", "least-stale", "least-stale-interval", "finemoe", "belady")


def system_table(
    history: RoutingTrace,
    served: RoutingTrace,
    systems: Mapping[str, System],
    expert_memories: Sequence[float],
    prefetch_distance: int,
    store_capacity: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every system at every memory size, as a table; systems that the trace cannot serve are left out (`left_out` says why).

    Args:
        history: what a system knows beforehand; served: other requests, replayed over one cache, cold at the start.
        expert_memories: shares of all routed experts. prefetch_distance: d, layers. store_capacity: C, maps.
    Returns:
        Rows (system, expert_memory, hit_rate, low, high, recall_at_k, demand_loads, useful_loads, wasted_loads, unused_loads),
        loads per expert demanded, intervals over requests.
    """
    reports = system_reports(history, served, systems, expert_memories, prefetch_distance, store_capacity, seed)
    return table_of(reports, seed)


def system_reports(
    history: RoutingTrace,
    served: RoutingTrace,
    systems: Mapping[str, System],
    expert_memories: Sequence[float],
    prefetch_distance: int,
    store_capacity: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, float], Report]:
    """As `system_table`, but whole reports by (system, expert memory)."""
    missing = left_out(served, systems, prefetch_distance)
    options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "seed": seed}
    store = store_from(replay_setup(served, history, **options))  # once for every variant of FineMoE
    found = {}
    for names in _heard_alike([name for name in systems if name not in missing], systems):
        system, evictions = systems[names[0]], [systems[name].eviction for name in names]
        known = store if system.policy == "finemoe" else history
        reports = sweep(served, system.policy, expert_memories, evictions, known, **options, **system.options)
        for (memory, name), report in zip(itertools.product(expert_memories, names), reports, strict=True):
            found[name, memory] = report
    return {(name, memory): found[name, memory] for name in systems if name not in missing for memory in expert_memories}


def table_of(reports: Mapping[tuple[str, float], Report], seed: int = 0) -> pd.DataFrame:
    """The rows of `system_table`."""
    return pd.DataFrame([{"system": name, "expert_memory": memory, **_row(one, seed)} for (name, memory), one in reports.items()])


def gain(better: Report, worse: Report, seed: int = 0) -> Interval:
    """How much more one report hits than the other, with an interval over the requests that both served (paired)."""
    hits = [[float(one.hits - other.hits)] for one, other in zip(better.requests, worse.requests, strict=True)]
    accesses = [[float(one.accesses)] for one in better.requests]
    found = bootstrap_ratio(np.array(hits), np.array(accesses), seed=seed)
    return Interval(found.value[0], found.low[0], found.high[0])


def left_out(trace: RoutingTrace, systems: Mapping[str, System], prefetch_distance: int) -> dict[str, str]:
    """Systems that this trace cannot serve, and why."""
    reasons = {name: _reason(trace, system, prefetch_distance) for name, system in systems.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def eviction_systems(rules: Sequence[str]) -> dict[str, System]:
    """Every rule with and without FineMoE's prefetches, named "rule, on demand" and "rule, prefetching" (Fig. 14b)."""
    kinds = {"prefetching": "finemoe", "on demand": "on-demand"}
    return {f"{rule}, {kind}": System(policy, rule) for kind, policy in kinds.items() for rule in rules}


def chosen_systems(names: Sequence[str]) -> dict[str, System]:
    """The systems of those names, in the order given.

    Raises:
        FinemoeError: a name is unknown.
    """
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise FinemoeError(f"unknown system {unknown[0]!r}; known: {', '.join(SYSTEMS)}")
    return {name: SYSTEMS[name] for name in names}


def _heard_alike(names: list[str], systems: Mapping[str, System]) -> list[list[str]]:
    """Systems that differ in their eviction rule only: their policy is heard once."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(f"{systems[name].policy} {sorted(systems[name].options.items())}", []).append(name)
    return list(groups.values())


def _row(report: Report, seed: int) -> dict[str, float]:
    counts = np.array([(request.hits, request.accesses) for request in report.requests], dtype=float)
    interval = bootstrap_ratio(counts[:, :1], counts[:, 1:], seed=seed)
    loads = {
        "demand_loads": report.demand_bytes,
        "useful_loads": report.useful_bytes,
        "wasted_loads": report.wasted_bytes,
        "unused_loads": report.unused_resident_bytes,
    }
    return {
        "hit_rate": report.hit_rate,
        "low": float(interval.low[0]),
        "high": float(interval.high[0]),
        "recall_at_k": report.recall_at_k,
        **{name: count / report.accesses for name, count in loads.items()},
    }


def _reason(trace: RoutingTrace, system: System, prefetch_distance: int) -> str:
    missing = set(system.strides(prefetch_distance)) - set(trace.lookahead_strides)
    if missing:
        return f"routers applied {min(missing)} ahead are not recorded"
    if system.needs_embeddings and trace.embedding_table is None:
        return "semantic embeddings are not recorded"
    return "only the activated experts' probabilities are recorded" if system.needs_gates and trace.probs is None else ""
