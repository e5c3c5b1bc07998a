"""What `finemoe info` says of a model: its geometry, how its experts are packed, and the memory they should have."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finemoe.cli.expert_memory import ExpertMemory

if TYPE_CHECKING:
    from finemoe.models.layers import MoELayer

_FILE_ALIGNMENT = 8  # bytes, of tensors in a safetensors file


def model_facts(source: str, mix: str | None) -> dict[str, Any]:
    """Of a configuration, in bf16 where it says of no quantisation.

    Args:
        mix: as if its experts were in a GGUF file of that mix.
    Raises:
        FinemoeError: there is no such configuration, or its weights are quantised in a way that finemoe cannot load.
    """
    from finemoe.models.geometry import Geometry, config_of, model_on_meta
    from finemoe.models.layers import find_moe_layers
    from finemoe.models.packed_sizes import PLAIN
    from finemoe.packing.methods import quantization_of
    from finemoe.runtime.expert_layout import ExpertLayout
    from finemoe.runtime.quantization import require_known

    config = config_of(source)
    told = quantization_of(config)
    if told is not None and mix is None:
        require_known(told, source)
    model = model_on_meta(config)
    geometry = Geometry.of_model(model, mix)
    is_packed = geometry.expert_format != PLAIN
    layers = find_moe_layers(model.float() if mix else model)  # a GGUF is loaded in float32 where nothing else is asked for
    unpacked = max(ExpertLayout.of(layer, None if mix else _latest_phases(layer, is_packed)).nbytes for layer in layers)
    memory = ExpertMemory(
        slot_bytes=geometry.expert_bytes if is_packed else unpacked,
        room_bytes=unpacked if is_packed else 0,
        num_layers=geometry.num_layers,
        num_experts=geometry.num_experts,
        top_k=geometry.experts_per_token,
        unpacked_to="float32" if mix else PLAIN,
    )
    return asdict(geometry) | _share(geometry.expert_bytes, geometry.unpacked_expert_bytes) | memory.facts()


def _latest_phases(layer: "MoELayer", is_packed: bool) -> dict[str, int]:
    """Where weights begin that take the most room: on the CPU records keep it, and only the checkpoint's file says where (see
    `runtime.expert_layout`). It is at most 256 bytes a parameter. What is unpacked lies in new memory."""
    from finemoe.runtime.expert_layout import LINE_BYTES

    as_in_file = [name for name, one in layer.expert_parameters().items() if not is_packed or one.ndim == 2]  # vectors, as biases
    return dict.fromkeys(as_in_file, LINE_BYTES - _FILE_ALIGNMENT)


def _share(packed_bytes: int, unpacked_bytes: int) -> dict[str, Any]:
    return {"expert_share_of_bf16": round(packed_bytes / unpacked_bytes, 4)}
