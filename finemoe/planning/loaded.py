"""What a model takes in memory once it is loaded in one format, from its configuration or a GGUF file's header."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.simulation.cost import ModelSize

if TYPE_CHECKING:
    from finemoe.models.layers import MoELayer
    from finemoe.runtime.expert_layout import ExpertLayout

PACKED_AT_LOAD = ("mxfp4", "fp8", "int8")
_FILE_ALIGNMENT = 8  # bytes, of tensors in a safetensors file


@dataclass(frozen=True)
class LoadedModel:
    """One model in one format.

    Attributes:
        name: as the user wrote it. source: what its configuration is read from.
        expert_format: how its experts are stored, such as "bf16" or "mxfp4". packed_at_load: the value of --expert-format that
            packs them so, which is lossy; None if they stay as published. mix: the GGUF mix; None without one.
        slot_bytes: one expert in its slot. room_bytes: one unpacked expert, if experts are packed, otherwise 0.
        all_experts_bytes: all experts in host memory. other_bytes: all other weights. kv_bytes: keys and values of one token.
        positions: the longest context that the model is made for; None if that is not known.
        size: the sizes that the simulator takes.
    """

    name: str
    source: str
    expert_format: str
    packed_at_load: str | None
    mix: str | None
    slot_bytes: int
    room_bytes: int
    all_experts_bytes: int
    other_bytes: int
    kv_bytes: int
    positions: int | None
    size: ModelSize

    @property
    def num_experts(self) -> int:
        """Routed experts of the whole model."""
        return self.size.num_layers * self.size.num_experts

    @property
    def is_lossy(self) -> bool:
        """Whether packing changes the published weights."""
        return self.packed_at_load is not None or self.mix is not None

    @property
    def smallest_bytes(self) -> int:
        """The least expert memory with which one token can be computed."""
        return self.slot_bytes + self.room_bytes

    def expert_memory_bytes(self, slots: int) -> int:
        """Expert memory with that many slots, on one device."""
        return slots * self.slot_bytes + self.room_bytes

    def slots_in(self, num_bytes: float) -> int:
        """The number of experts that so much expert memory holds, at most all; 0 if not even one."""
        return max(0, min(self.num_experts, int(num_bytes - self.room_bytes) // self.slot_bytes))


def loaded_models(
    name: str, source: str, formats: Sequence[str | None] = (None,), mix: str | None = None, is_cuda: bool = True
) -> list[LoadedModel]:
    """The model in each of these formats.

    Args:
        name, source: as in LoadedModel. formats: values of --expert-format; None keeps the published format. A model that is
            published packed has only that.
        mix: count the experts as in a GGUF file of this mix instead.
        is_cuda: whether a GPU holds the slots; on a CPU, records keep the alignment of the checkpoint's file.
    Raises:
        FinemoeError: there is no such configuration, or the sizes cannot be determined.
    """
    from finemoe.models.geometry import config_of, model_on_meta
    from finemoe.models.layers import find_moe_layers
    from finemoe.packing.methods import quantization_of
    from finemoe.runtime.gguf_names import gguf_path
    from finemoe.runtime.quantization import require_known

    if (file := gguf_path(source)) is not None:
        return [_of_gguf(name, file)]
    config = config_of(source)
    told = quantization_of(config)
    if told is not None and mix is None:
        require_known(told, source)
    model = model_on_meta(config)
    layers = find_moe_layers(model)
    size = _size_of(source, config, name)
    if mix is not None:
        return [_in_mix(name, source, mix, model, layers, size)]
    model = model.to(_dtype_of(config))
    kept = [layout_of(model, layer, told, None, is_cuda) for layer in layers]
    is_packed = any(layout.packing is not None for layout in kept)
    wanted = [None] if is_packed else list(formats)
    return [_with_format(name, source, one, model, layers, size, told, is_cuda) for one in wanted]


def layout_of(
    model: Any, layer: "MoELayer", told: dict[str, Any] | None, expert_format: str | None, is_cuda: bool
) -> "ExpertLayout":
    """The record of one expert of a layer, as loading lays it out; arguments as in `loaded_models`."""
    from finemoe.runtime.expert_layout import ExpertLayout
    from finemoe.runtime.packing import Packing, matrices_as_published, packing_matrices

    matrices = None if told is None else matrices_as_published(model, layer, told)
    if expert_format is not None:
        matrices = packing_matrices(layer, expert_format)
    plain = ExpertLayout.of(layer, None if is_cuda else latest_phases(layer, matrices is not None))
    return plain if matrices is None else ExpertLayout.packed(Packing(matrices, plain))


def latest_phases(layer: "MoELayer", is_packed: bool) -> dict[str, int]:
    """The phases of the weights that take the most room. On the CPU, records keep the phase that a weight has in the checkpoint's
    file (see `runtime.expert_layout`), which costs up to 256 bytes per parameter. Unpacked weights are in new memory."""
    from finemoe.runtime.expert_layout import LINE_BYTES

    as_in_file = [name for name, one in layer.expert_parameters().items() if not is_packed or one.ndim == 2]  # vectors, as biases
    return dict.fromkeys(as_in_file, LINE_BYTES - _FILE_ALIGNMENT)


def _with_format(
    name: str,
    source: str,
    expert_format: str | None,
    model: Any,
    layers: "Sequence[MoELayer]",
    size: ModelSize,
    told: dict[str, Any] | None,
    is_cuda: bool,
) -> LoadedModel:
    from finemoe.models.packed_sizes import expert_records
    from finemoe.runtime.room import Room

    layouts = [layout_of(model, layer, told, expert_format, is_cuda) for layer in layers]
    room = Room.of(layouts, "packed")
    published = max(expert_records(model, layers, told), key=lambda record: record.nbytes).format
    plain = str(next(iter(layers[0].expert_parameters().values())).dtype).removeprefix("torch.").replace("bfloat16", "bf16")
    return LoadedModel(
        name=name,
        expert_format=expert_format or (published if any(one.packing for one in layouts) else plain),
        packed_at_load=expert_format,
        mix=None,
        room_bytes=room.room_bytes,
        all_experts_bytes=sum(layer.num_experts * one.nbytes for layer, one in zip(layers, layouts, strict=True)),
        **_shared(source, model, layers, size, room.slot_bytes),
    )


def _in_mix(name: str, source: str, mix: str, model: Any, layers: "Sequence[MoELayer]", size: ModelSize) -> LoadedModel:
    """Experts as in a GGUF file; everything else in bfloat16, as the command line loads such a file."""
    from finemoe.models.packed_sizes import expert_records
    from finemoe.runtime.expert_layout import ExpertLayout

    records = expert_records(model, layers, None, mix)
    largest = max(records, key=lambda record: record.nbytes)
    return LoadedModel(
        name=name,
        expert_format=largest.format,
        packed_at_load=None,
        mix=mix,
        room_bytes=max(ExpertLayout.of(layer, None).nbytes for layer in layers),
        all_experts_bytes=sum(record.count * record.nbytes for record in records),
        **_shared(source, model, layers, size, largest.nbytes),
    )


def _shared(source: str, model: Any, layers: "Sequence[MoELayer]", size: ModelSize, slot_bytes: int) -> dict[str, Any]:
    """The fields that follow from the model and the size of a slot, whatever its experts are packed in."""
    return {
        "source": source,
        "slot_bytes": slot_bytes,
        "other_bytes": other_bytes(model, layers),
        "kv_bytes": _kv_bytes(size, model),
        "positions": _positions(source, model),
        "size": replace(size, packed_bytes=slot_bytes),
    }


def _of_gguf(name: str, path: Path) -> LoadedModel:
    from finemoe.runtime.gguf_file import require_packages

    require_packages(path)
    from finemoe.runtime.gguf_layouts import gguf_layouts
    from finemoe.runtime.room import Room

    found = gguf_layouts(path)
    size, room = ModelSize.from_config(found.config, name), Room.of(found.layouts, "packed")
    return LoadedModel(
        name=name,
        expert_format="gguf",
        packed_at_load=None,
        mix=None,
        room_bytes=room.room_bytes,
        all_experts_bytes=found.all_experts_bytes,
        **_shared(str(path), found.model, found.layers, size, room.slot_bytes),
    )


def other_bytes(model: Any, layers: "Sequence[MoELayer]") -> int:
    """All parameters except the routed experts, shared ones once."""
    experts = {id(one) for layer in layers for one in layer.expert_parameters().values()}
    return sum(one.numel() * one.element_size() for one in model.parameters() if id(one) not in experts)


def _positions(source: str, model: Any) -> int | None:
    """Unknown for the included configurations, which state only what sizes follow from."""
    if _is_included(source):
        return None
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _kv_bytes(size: ModelSize, model: Any) -> int:
    """Keys and values of one token in all layers, in the model's type; `size` counts two bytes a number."""
    each = next(model.parameters()).element_size()
    return size.kv_bytes * model.config.get_text_config().num_hidden_layers * each // 2


def _size_of(source: str, config: Any, name: str) -> ModelSize:
    """From the table of included configurations if it is one of them."""
    from finemoe.simulation.cost import size_named

    return size_named(Path(source).stem) if _is_included(source) else ModelSize.from_config(config, name)


def _is_included(source: str) -> bool:
    from finemoe.paths import MODEL_CONFIGS

    return Path(source).parent == MODEL_CONFIGS


def _dtype_of(config: Any) -> Any:
    """The type that `finemoe.load` gives the weights: the configuration's, else that in which models are published."""
    import torch

    return config.dtype or config.get_text_config().dtype or torch.bfloat16
