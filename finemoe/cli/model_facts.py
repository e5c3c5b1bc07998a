"""The facts that `finemoe info` reports about a model: geometry, expert format and recommended memory."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finemoe.cli.expert_memory import ExpertMemory

if TYPE_CHECKING:
    from finemoe.models.layers import MoELayer

_FILE_ALIGNMENT = 8  # bytes, of tensors in a safetensors file


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
    from finemoe.runtime.expert_layout import ExpertLayout
    from finemoe.runtime.quantization import require_known

    config = config_of(source)
    told = quantization_of(config)
    if told is not None and mix is None:
        require_known(told, source)
    model = model_on_meta(config)
    geometry = Geometry.of_model(model, mix)
    is_packed = geometry.expert_format != PLAIN
    layers = find_moe_layers(model.float() if mix else model)  # the default type when a GGUF file is loaded
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
    """The phases of the weights that take the most room. On the CPU, records keep the phase that a weight has in the checkpoint's
    file (see `runtime.expert_layout`), which costs up to 256 bytes per parameter. Unpacked weights are in new memory."""
    from finemoe.runtime.expert_layout import LINE_BYTES

    as_in_file = [name for name, one in layer.expert_parameters().items() if not is_packed or one.ndim == 2]  # vectors, as biases
    return dict.fromkeys(as_in_file, LINE_BYTES - _FILE_ALIGNMENT)


def _share(packed_bytes: int, unpacked_bytes: int) -> dict[str, Any]:
    return {"expert_share_of_bf16": round(packed_bytes / unpacked_bytes, 4)}
