"""The paper's systems compared on recorded routing: hit rates with intervals over an instant link, and the bytes they move.

A free link favours systems that load much. Each row therefore shows what the system moved: experts loaded per expert demanded, on
demand and by prefetching, and how many prefetches were evicted unused (Figs. 4, 14a, 14b and the comparison of systems).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from finemoe.intervals import bootstrap_ratio
from finemoe.report import Report
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import sweep
from finemoe.simulation.systems import System, left_out
from finemoe.traces import RoutingTrace


def system_reports(
    history: RoutingTrace | Knowledge | None,
    served: RoutingTrace,
    systems: Mapping[str, System],
    expert_memories: Sequence[float],
    prefetch_distance: int,
    store_capacity: int = 1000,
    seed: int = 0,
    progress: bool = False,
    **machine: Any,
) -> dict[tuple[str, float], Report]:
    """Replay every system at every memory size; systems that the trace cannot drive are left out (`left_out` gives the reason).

    Args:
        history: what a system knows beforehand, as requests or as prepared knowledge (with the same options), or None.
        served: other requests, replayed over one cache that is empty at the start.
        expert_memories: shares of all routed experts. prefetch_distance: d, layers. store_capacity: C, maps.
        progress: show bars. machine: hardware, model and arrangement as in `sweep`, for virtual time.
    Returns:
        Reports by (system, expert memory), in the order of both.
    """
    missing = left_out(served, systems, prefetch_distance)
    options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "seed": seed}
    knowledge = history if isinstance(history, Knowledge) else Knowledge(served, history, **options)
    found = {}
    groups = _heard_alike([name for name in systems if name not in missing], systems)
    options["progress"] = progress
    for names in tqdm(groups, desc="systems", unit="system", leave=False, disable=not progress):
        system, evictions = systems[names[0]], [systems[name].eviction for name in names]
        known = knowledge.of(system.policy)
        reports = sweep(served, system.policy, expert_memories, evictions, known, **options, **machine, **system.options)
        for (memory, name), report in zip(itertools.product(expert_memories, names), reports, strict=True):
            found[name, memory] = report
    return {(name, memory): found[name, memory] for name in systems if name not in missing for memory in expert_memories}


def comparison_rows(reports: Mapping[tuple[str, float], Report], seed: int = 0, expert_bytes: int = 1) -> list[dict[str, Any]]:
    """The results of `system_reports`, one row each.

    Args:
        expert_bytes: size of one expert in the reports; 1 where they count experts.
    Returns:
        Rows (system, expert_memory, hit_rate, low, high, recall_at_k, demand_loads, useful_loads, wasted_loads, unused_loads),
        loads per expert demanded, intervals over requests.
    """
    return [{"system": name, "expert_memory": memory, **_row(one, seed, expert_bytes)} for (name, memory), one in reports.items()]


def _heard_alike(names: list[str], systems: Mapping[str, System]) -> list[list[str]]:
    """Groups of systems that differ only in their eviction rule: their policy is asked once."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(f"{systems[name].policy} {sorted(systems[name].options.items())}", []).append(name)
    return list(groups.values())


def _row(report: Report, seed: int, expert_bytes: int) -> dict[str, float]:
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
        **{name: count / expert_bytes / report.accesses for name, count in loads.items()},
    }
