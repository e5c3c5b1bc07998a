"""The facts that `finemoe info` reports about a model: geometry, bytes, and what a machine holds of it and how fast that is."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finemoe.cli.expert_memory import ExpertMemory

if TYPE_CHECKING:
    from finemoe.planning.loaded import LoadedModel
    from finemoe.planning.place import Place


def model_facts(source: str, mix: str | None) -> dict[str, Any]:
    """Facts from a configuration; bf16 is assumed if it states no quantisation.

    Args:
        mix: count the experts as in a GGUF file of this mix.
    Raises:
        FinemoeError: the configuration does not exist, or finemoe cannot load its quantisation.
    """
    from finemoe.models.geometry import Geometry, config_of, model_on_meta
    from finemoe.models.layers import find_moe_layers
    from finemoe.models.packed_sizes import PLAIN
    from finemoe.packing.methods import quantization_of
    from finemoe.planning.loaded import latest_phases
    from finemoe.runtime.expert_layout import ExpertLayout
    from finemoe.runtime.quantization import require_known

    config = config_of(source)
    told = quantization_of(config)
    if told is not None and mix is None:
        require_known(told, source)
    model = model_on_meta(config)
    geometry = Geometry.of_model(model, mix)
    is_packed = geometry.expert_format != PLAIN
    layers = find_moe_layers(model)
    unpacked = max(ExpertLayout.of(layer, None if mix else latest_phases(layer, is_packed)).nbytes for layer in layers)
    memory = ExpertMemory(
        slot_bytes=geometry.expert_bytes if is_packed else unpacked,
        room_bytes=unpacked if is_packed else 0,
        num_layers=geometry.num_layers,
        num_experts=geometry.num_experts,
        top_k=geometry.experts_per_token,
    )
    return asdict(geometry) | _share(geometry.expert_bytes, geometry.unpacked_expert_bytes) | memory.facts()


def machine_facts(model: "LoadedModel", place: "Place", context: int, is_timed: bool) -> dict[str, Any]:
    """What a machine holds of a model, and, if it is timed, how fast that is.

    Args:
        context: tokens whose keys and values must fit.
    Returns:
        The fields of JSON. expert_memory_here_bytes is recommended: the least that is within two percent of the fastest.
    """
    from finemoe.planning.choices import disk_bytes, largest_context, room_bytes

    room = room_bytes(model, place, context)
    fits = room >= model.smallest_bytes
    found: dict[str, Any] = {
        "other_weights_bytes": model.other_bytes,
        "kv_cache_bytes_per_1000_tokens": 1000 * model.kv_bytes,
        "machine": place.testbed.title,
        "machine_memory_bytes": int(place.testbed.memory_bytes),
        "machine_reserve_bytes": place.reserve_bytes(place.testbed.memory_bytes),
        "context": context,
        "kv_cache_bytes": model.kv_bytes * context,
        "fits": fits,
        "largest_expert_memory_bytes": min(room, model.expert_memory_bytes(model.num_experts)) if fits else 0,
        "largest_context": largest_context(model, place),
        "host_memory_bytes": place.host_bytes,
        "disk_bytes": disk_bytes(model, place),
    }
    return found | (_timed(model, place, context) if fits and is_timed else {})


def _timed(model: "LoadedModel", place: "Place", context: int) -> dict[str, Any]:
    from finemoe.planning.choices import choices_of
    from finemoe.planning.plan import basis_of, prepare, ranked
    from finemoe.planning.routing import shipped_trace

    trace = shipped_trace(model.name)
    prepared = prepare(model, trace, seed=0)
    best = ranked(choices_of(model, place, context, prepared))[0]
    return {
        "expert_memory_here_bytes": best.expert_memory_bytes,
        "expert_memory_here_slots": best.slots,
        "policy": best.policy,
        "eviction": best.eviction,
        "tokens_per_s": best.tokens_per_s,
        "tpot_s": best.tpot_s,
        "basis": basis_of(trace, prepared),
    }


def _share(packed_bytes: int, unpacked_bytes: int) -> dict[str, Any]:
    return {"expert_share_of_bf16": round(packed_bytes / unpacked_bytes, 4)}
