"""Memory footprint of a system in parts (Fig. 1b): experts, other weights, keys and values, and what it stores about the past."""

import pandas as pd

from finemoe.maps.store import ExpertMapStore
from finemoe.policies.predictors import LayerPredictors
from finemoe.simulation.cost import CostModel, ModelSize, size_named
from finemoe.simulation.testbed import Testbed

PARTS = {
    "experts_gb": ("experts", "#0072B2", ""),
    "other_weights_gb": ("other weights", "#999999", "//"),
    "kv_cache_gb": ("keys and values", "#E69F00", "xx"),
    "memory_of_past_gb": ("store, matrices or predictors (host)", "white", "...."),
}
_MATRICES = 120  # size of MoE-Infinity's collection


def footprint_table(cells: pd.DataFrame, testbed: str, store_capacity: int, context_tokens: int) -> pd.DataFrame:
    """Memory of every row of `cells` (model, system, expert_memory), in GB, in parts and in total."""
    rows = []
    for model, system, share in cells[["model", "system", "expert_memory"]].itertuples(index=False):
        size = size_named(model)
        cost = CostModel(size, Testbed.load(testbed))
        parts = {
            "experts_gb": size.all_experts_bytes if system == "No-offload" else cost.cache_bytes(share),
            "other_weights_gb": size.resident_bytes,
            "kv_cache_gb": context_tokens * size.num_layers * size.kv_bytes,
            "memory_of_past_gb": past_bytes(size, system, store_capacity),
        }
        rows.append({name: num_bytes / 1e9 for name, num_bytes in parts.items()})
    table = pd.DataFrame(rows, index=cells.index)
    return table.assign(total_gb=table.sum(axis=1))


def past_bytes(size: ModelSize, system: str, store_capacity: int, prefetch_distance: int = 3) -> int:
    """Size in bytes of what a system stores about past requests, on the host."""
    if system == "FineMoE":
        return ExpertMapStore(size.num_layers, size.num_experts, size.hidden_size, store_capacity).nbytes
    if system == "MoE-Infinity":
        return _MATRICES * size.num_layers * size.num_experts * 8
    if system == "ProMoE":
        return 4 * LayerPredictors(size.num_layers, size.num_experts, prefetch_distance).num_weights
    return 0
