"""How far the design scales: models with hundreds of experts per layer on many devices, with synthetic routing (study
`scale`)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.coverage import theory
from finemoe.artifact.analysis.modelled_breakdown import busiest_device_s, trajectory_search_s
from finemoe.artifact.progress import progress
from finemoe.maps.store import ExpertMapStore
from finemoe.paths import ROOT
from finemoe.policies.finemoe import store_from
from finemoe.simulation.cost import CostModel, size_named
from finemoe.simulation.replay import replay, replay_setup
from finemoe.simulation.synthetic import Recipe, Statistics, fitted, statistics_of, synthetic_trace
from finemoe.simulation.testbed import Testbed

SYSTEMS = {"FineMoE": "finemoe", "on-demand (LRU)": "on-demand", "oracle": "oracle"}
_HEADROOM = 0.9  # share of a device's memory, after the other weights, that experts may take


def routing_check(statistics: str, models: Sequence[str], store_capacity: int, seed: int = 0) -> tuple[Recipe, pd.DataFrame]:
    """A recipe for synthetic routing with the statistics of a recording, and a check that routing made by it has them.

    Args:
        statistics: CSV of the recording; a relative path starts at the repository root.
        models: models whose sizes are tried as well.
        store_capacity: C; the history of the tried routing is as long as needed to fill the store.
    Returns:
        The recipe, and one row of statistics for the recording and one for each generated routing.
    """
    wanted = Statistics(**pd.read_csv(ROOT / statistics)[["reuse", "within", "across", "recall"]].iloc[0])
    recipe = fitted(wanted, 24, 32, 4, seed)
    made = {"recorded, 24x32/4": wanted, "synthetic, 24x32/4": statistics_of(synthetic_trace(recipe, 24, 32, 4, 30, 60, seed))}
    for name in progress(models, "checking the routing", "model"):
        size, tokens = size_named(name), -(-store_capacity // 14)  # 14 of 20 requests are history
        trace = synthetic_trace(recipe, size.num_layers, size.num_experts, size.top_k, 20, tokens, seed)
        made[f"synthetic, {name}"] = statistics_of(trace)
    return recipe, pd.DataFrame({name: asdict(one) for name, one in made.items()}).T


def scale_tables(models: Sequence[str], *settings: Any) -> pd.DataFrame:
    """`scale_table` of several models, concatenated."""
    return pd.concat([scale_table(name, *settings) for name in models], ignore_index=True)


def scale_table(
    model: str,
    recipe: Recipe,
    hardware: str,
    devices: Sequence[int],
    expert_memory: float,
    num_tokens: int,
    prefetch_distance: int = 3,
    store_capacity: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """A model's decode on increasing numbers of devices of a testbed, each with its own link.

    Args:
        model: name of the model.
        recipe: recipe of the synthetic routing.
        hardware: the testbed.
        devices: numbers of devices.
        expert_memory: share of all routed experts; reduced if the devices do not have enough memory.
        num_tokens: number of decode iterations to serve.
    Returns:
        Rows (model, devices, system, expert_memory, tpot_ms, hit_rate, moved_gb_per_token, link_ms, layer_ms, search_ms). link_ms
        is the minimum time that the links need for the moved bytes, per token; layer_ms is a layer without waiting; search_ms is
        one trajectory search, which must be shorter than a layer to keep up.
    """
    size = size_named(model)
    tokens_per_request = max(1, num_tokens // 6)
    trace = synthetic_trace(recipe, size.num_layers, size.num_experts, size.top_k, 20, tokens_per_request, seed)
    history, served = trace.split("history"), trace.split("served")
    options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity}
    known = dict.fromkeys(SYSTEMS.values(), history) | {"finemoe": store_from(replay_setup(served, history, **options))}
    rows = []
    for count in progress(devices, model, "number of devices"):
        testbed = replace(Testbed.load(hardware), devices=count, host_bytes_per_s=count * Testbed.load(hardware).link_bytes_per_s)
        cost = CostModel(size, testbed)
        share = min(
            expert_memory, _HEADROOM * testbed.devices * (testbed.memory_bytes - size.resident_bytes) / size.all_experts_bytes
        )
        layer_s = float((cost.before_experts(np.ones(1), np.full(1, 256.0), np.full(1, 256.0)) + cost.exchange(np.ones(1)))[0])
        layer_s += busiest_device_s(cost, served)
        search_s = trajectory_search_s(cost, store_capacity)
        for system, policy in SYSTEMS.items():
            report = replay(served, policy, share, testbed, known[policy], model=model, **options)
            moved = (report.demand_bytes + report.prefetched_bytes) / report.num_decode_steps
            rows.append(
                {
                    "model": model,
                    "devices": count,
                    "system": system,
                    "expert_memory": share,
                    "tpot_ms": 1e3 * report.tpot_s,
                    "hit_rate": report.hit_rate,
                    "moved_gb_per_token": moved / 1e9,
                    "link_ms": 1e3 * moved / (count * testbed.load_bytes_per_s),
                    "layer_ms": 1e3 * layer_s,
                    "search_ms": 1e3 * search_s,
                }
            )
    return pd.DataFrame(rows)


def store_table(models: Sequence[str], capacities: Sequence[int], hardware: str) -> pd.DataFrame:
    """Memory of a store and time of one trajectory search by capacity, including the coverage theory's capacities (4.4).

    Returns:
        Rows (model, capacity, kind, store_mb, search_ms). kind is "given", or the similarity that the theory promises, 75 % or 98
        %, which stores of that capacity do not reach (coverage.py).
    """
    rows = []
    for model in models:
        size = size_named(model)
        wanted = theory(size.num_layers, size.num_experts)
        asked = [(f"{100 * promised:.0f} % similar", capacity) for promised, capacity in wanted.items()]
        for kind, capacity in [("given", capacity) for capacity in capacities] + asked:
            per_map = ExpertMapStore(size.num_layers, size.num_experts, size.hidden_size, 1).nbytes
            search_s = trajectory_search_s(CostModel(size, Testbed.load(hardware)), capacity)
            rows.append(
                {
                    "model": model,
                    "capacity": capacity,
                    "kind": kind,
                    "store_mb": per_map * capacity / 1e6,
                    "search_ms": 1e3 * search_s,
                }
            )
    return pd.DataFrame(rows)
