"""The paper's systems and this project's own on a described testbed, in virtual time: TTFT, TPOT, hits and bytes of requests.

A row is one request (or one batch, if several run together), so any quantity drawn from a table has an interval over requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.progress import progress
from finemoe.errors import FinemoeError
from finemoe.intervals import Interval, bounds, resample_counts
from finemoe.paths import ROOT
from finemoe.policies import policy_named
from finemoe.report import Report
from finemoe.simulation.cost import CostModel, size_of
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import sweep
from finemoe.simulation.systems import System, left_out
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

PAPER_SYSTEMS = {
    "DeepSpeed-Inference": System("deepspeed-inference"),
    "Mixtral-Offloading": System("mixtral-offloading"),
    "ProMoE": System("promoe"),
    "MoE-Infinity": System("moe-infinity"),
    "FineMoE": System("finemoe"),
}
BASELINES = tuple(PAPER_SYSTEMS)[:-1]
BOUNDS = {
    "on-demand (LRU)": System("on-demand"),
    "oracle": System("oracle"),
    "No-offload": System("no-offload"),
}
LATENCY_SYSTEMS = PAPER_SYSTEMS | BOUNDS
# Not in the paper: shown with its systems, but neither FineMoE nor one of its baselines, so no claim is judged by it.
OURS = {"finemoe-plus": System("finemoe-plus")}
SHOWN_SYSTEMS = PAPER_SYSTEMS | OURS | BOUNDS


def latency_table(
    history: RoutingTrace,
    served: RoutingTrace,
    systems: Mapping[str, System],
    hardware: str | Testbed,
    expert_memories: Sequence[float | str],
    prefetch_distance: int,
    store_capacity: int = 1000,
    seed: int = 0,
    model: str | None = None,
    batch_size: int = 1,
) -> pd.DataFrame:
    """Every request under every system at every memory size.

    Args:
        history: what a system knows in advance; served: other requests.
        systems: systems by name.
        hardware, model, batch_size: as in `replay`.
        expert_memories: shares of all routed experts, or texts with a unit, in bytes per device.
        prefetch_distance: d, in layers.
        store_capacity: C, in maps.
    Returns:
        Rows (system, expert_memory, request, and the fields of RequestReport but drafts). Systems that need data missing from the
        trace, and sizes that do not fit on the testbed, are left out.
    Raises:
        FinemoeError: none of the sizes fits on the testbed.
    """
    missing = left_out(served, systems, prefetch_distance)
    options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "seed": seed}
    knowledge = Knowledge(served, history, **options)
    cost = CostModel(size_of(model, served.num_layers, served.num_experts, served.top_k), Testbed.load(hardware))
    options |= {"hardware": hardware, "model": model, "batch_size": batch_size}
    tables = []
    for name, system in progress(systems.items(), "replaying", "system", len(systems), leave=False):
        memories = _fitting(cost, system, expert_memories)
        if name not in missing and memories:
            known = knowledge.of(system.policy)
            reports = sweep(served, system.policy, memories, [system.eviction], known, **options, **system.options)
            tables += [request_rows(report, name, memory) for memory, report in zip(memories, reports, strict=True)]
    if not tables:
        raise FinemoeError(
            f"{cost.size.name} fits on {cost.testbed.title} at none of the sizes {', '.join(map(str, expert_memories))}; "
            "add smaller ones"
        )
    return pd.concat(tables, ignore_index=True)


def systems_on_testbed(
    history: RoutingTrace,
    served: RoutingTrace,
    hardware: str,
    expert_memories: Sequence[float],
    cache_limits_gb: Sequence[float],
    **settings: Any,
) -> pd.DataFrame:
    """`latency_table` of every system, including the project's own, at shares of the experts and at GB of cache over all devices.

    Returns:
        Its rows with the additional columns testbed and cache_limit_gb; one of expert_memory and cache_limit_gb is NaN.
    """
    devices = Testbed.load(hardware).devices
    limits = {f"{1e9 * limit / devices:.0f}B": float(limit) for limit in cache_limits_gb}
    table = latency_table(history, served, SHOWN_SYSTEMS, hardware, [*expert_memories, *limits], **settings)
    table.insert(2, "cache_limit_gb", table.expert_memory.map(limits))
    table["expert_memory"] = pd.to_numeric(table.expert_memory, errors="coerce")
    table.insert(0, "testbed", hardware)
    return table


def distance_table(
    history: RoutingTrace,
    served: RoutingTrace,
    hardware: str,
    expert_memory: float,
    prefetch_distances: Sequence[int],
    store_capacity: int = 1000,
    seed: int = 0,
    model: str | None = None,
) -> pd.DataFrame:
    """FineMoE, the oracle and on-demand loading at every prefetch distance, one row per request (Fig. 15)."""

    def table_of(names: Sequence[str], distance: int) -> pd.DataFrame:
        systems = {name: LATENCY_SYSTEMS[name] for name in names}
        return latency_table(history, served, systems, hardware, [expert_memory], distance, store_capacity, seed, model)

    on_demand = table_of(["on-demand (LRU)"], prefetch_distances[0])  # does not depend on the distance
    tables = [pd.concat([table_of(["FineMoE", "oracle"], d), on_demand], ignore_index=True) for d in prefetch_distances]
    return pd.concat(
        [table.assign(testbed=hardware, prefetch_distance=d) for d, table in zip(prefetch_distances, tables, strict=True)],
        ignore_index=True,
    )


def request_rows(report: Report, system: str, expert_memory: float | str) -> pd.DataFrame:
    """A report's requests as rows; nothing is drafted where these tables are made."""
    rows = pd.DataFrame([asdict(request) for request in report.requests]).drop(columns="drafts")
    rows.insert(0, "system", system)
    rows.insert(1, "expert_memory", expert_memory)
    rows.insert(2, "request", np.arange(len(rows)))
    return rows


def load_tables(paths: Sequence[str]) -> pd.DataFrame:
    """Concatenate tables of requests; relative paths start at the repository root."""
    return pd.concat([pd.read_csv(ROOT / path) for path in paths], ignore_index=True)


def on_testbed_of(table: pd.DataFrame, paths: Sequence[str]) -> pd.DataFrame:
    """The part of a table served on the testbed of these tables (a shipped table may contain several testbeds)."""
    testbeds = {str(testbed) for path in paths for testbed in pd.read_csv(ROOT / path, usecols=["testbed"]).testbed.unique()}
    return table[table.testbed.isin(testbeds)]


def cells(table: pd.DataFrame, paths: Sequence[str], expert_memory: float) -> pd.DataFrame:
    """The part of a table served on the testbed of these tables at one size of the expert cache."""
    chosen = on_testbed_of(table, paths)
    return chosen[chosen.expert_memory == expert_memory]


def means(table: pd.DataFrame, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Means over requests with 95 % intervals.

    Returns:
        For every group of `by`: ttft_s, tpot_s (mean over decode steps) and hit_rate, each with _low and _high, and the bytes
        moved per
        request: demand_bytes, prefetched_bytes, wasted_bytes.
    """
    return pd.DataFrame(
        [{**dict(zip(by, key, strict=True)), **_summary(part, seed)} for key, part in table.groupby(list(by), sort=False)]
    )


def reduction(baseline: pd.DataFrame, system: pd.DataFrame, quantity: str, seed: int = 0) -> Interval:
    """Relative reduction of a quantity over a baseline on the same requests (paired): 1 - the system's mean / the baseline's.

    Args:
        quantity: "ttft_s", "tpot_s" or "hit_rate" (for which an increase is negative).
    """
    weights = resample_counts(len(baseline), seed=seed).astype(float)
    ratio = _ratio(*_sums(system, quantity), weights) / _ratio(*_sums(baseline, quantity), weights)
    low, high = bounds(1 - ratio[1:], len(baseline))
    return Interval(1 - ratio[0], low, high)


def _fitting(cost: CostModel, system: System, expert_memories: Sequence[float | str]) -> list[float | str]:
    holds_everything = policy_named(system.policy, is_replay=True).holds_everything
    return [memory for memory in expert_memories if cost.fits(1.0 if holds_everything else memory)]


def _summary(part: pd.DataFrame, seed: int) -> dict[str, float]:
    weights = resample_counts(len(part), seed=seed).astype(float)
    found: dict[str, float] = {}
    for quantity in ("ttft_s", "tpot_s", "hit_rate"):
        ratio = _ratio(*_sums(part, quantity), weights)
        low, high = bounds(ratio[1:], len(part)) if np.isfinite(ratio).all() else (np.nan, np.nan)
        found |= {quantity: ratio[0], f"{quantity}_low": low, f"{quantity}_high": high}
    return found | {name: part[name].mean() for name in ("demand_bytes", "prefetched_bytes", "wasted_bytes")}


def _sums(part: pd.DataFrame, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of a mean over requests, per request."""
    if quantity == "hit_rate":
        return part.hits.to_numpy(float), part.accesses.to_numpy(float)
    if quantity == "tpot_s":
        steps = part.num_decode_steps.to_numpy(float)
        return np.where(steps > 0, part.tpot_s * steps, 0.0), steps
    return part[quantity].to_numpy(float), np.ones(len(part))


def _ratio(numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The ratio of the sums, for the original requests and for every resample."""
    weights = np.vstack([np.ones(len(numerators)), weights])
    ratio: np.ndarray = (weights @ numerators) / (weights @ denominators)
    return ratio
