"""Where the time of one decode iteration goes (Fig. 17), as the simulator models it for a published model on a testbed."""

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS, latency_table
from finemoe.maps.store import semantic_search_bytes, trajectory_search_bytes
from finemoe.simulation.cost import CostModel, size_of
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import prefetch_time_s
from finemoe.traces import DECODE, RoutingTrace

# On the critical path, then at the same time: column -> (label, colour, hatch).
CRITICAL = {
    "attention_ms": ("attention, router, head", "#999999", ""),
    "experts_ms": ("experts", "#0072B2", ""),
    "engine_ms": ("collecting context, accounting", "#D55E00", "xx"),
    "waiting_ms": ("waiting for weights", "#E69F00", "//"),
}
BESIDE = {
    "search_ms": ("search", "#56B4E9", ".."),
    "prefetching_ms": ("prefetching (mean link)", "white", "\\\\"),
}


def modelled_breakdown(
    history: RoutingTrace,
    served: RoutingTrace,
    hardware: str,
    expert_memory: float,
    prefetch_distance: int,
    store_capacity: int = 1000,
) -> dict[str, float]:
    """Mean decode iteration of FineMoE, in ms by part; the engine's own time is not modelled.

    All parts except waiting come from the same model and testbed with every expert resident.
    """
    decode = served.decode()
    systems = {name: LATENCY_SYSTEMS[name] for name in ("FineMoE", "No-offload")}
    table = latency_table(history, decode, systems, hardware, [expert_memory], prefetch_distance, store_capacity)
    tpot_s = {name: _mean_tpot_s(part) for name, part in table.groupby("system")}
    testbed = Testbed.load(hardware)
    cost = CostModel(size_of(None, served.num_layers, served.num_experts, served.top_k), testbed)
    ours = table[table.system == "FineMoE"]
    steps = ours.num_decode_steps.sum()
    experts_s = served.num_layers * busiest_device_s(cost, served)
    loads = ours.prefetched_bytes.sum() / cost.size.expert_bytes / steps
    return {
        "attention_ms": 1e3 * (tpot_s["No-offload"] - experts_s),
        "experts_ms": 1e3 * experts_s,
        "waiting_ms": 1e3 * (tpot_s["FineMoE"] - tpot_s["No-offload"]),
        "search_ms": 1e3 * _search_s(cost, served, prefetch_distance, store_capacity),
        "prefetching_ms": 1e3 * loads * prefetch_time_s(cost) / testbed.devices,
    }


def _mean_tpot_s(part: pd.DataFrame) -> float:
    return float((part.tpot_s * part.num_decode_steps).sum() / part.num_decode_steps.sum())


def trajectory_search_s(cost: CostModel, store_capacity: int) -> float:
    """Time of one row's search of one layer in a full store, in seconds."""
    return float(cost.search(np.array([float(trajectory_search_bytes(store_capacity, cost.size.num_experts))]))[0])


def busiest_device_s(cost: CostModel, served: RoutingTrace) -> float:
    """Time of the busiest device's experts of one layer at one token, mean over the layers and tokens served, in seconds."""
    owners = (np.arange(served.num_layers)[None, :, None] * served.num_experts + served.expert_ids) % cost.testbed.devices
    rows = owners[served.phase == DECODE]
    busiest = np.stack([(rows == device).sum(axis=2) for device in range(cost.testbed.devices)]).max(axis=0).mean()
    return float(busiest * cost.expert(np.ones(1))[0])


def _search_s(cost: CostModel, served: RoutingTrace, prefetch_distance: int, store_capacity: int) -> float:
    """Time of one semantic search and of a trajectory search at every layer that guides another, in seconds."""
    semantic_s = float(cost.search(np.array([float(semantic_search_bytes(store_capacity, cost.size.hidden_size))]))[0])
    return semantic_s + (served.num_layers - prefetch_distance) * trajectory_search_s(cost, store_capacity)
