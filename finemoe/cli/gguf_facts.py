"""The facts that `finemoe info` reports about a GGUF file, from its header."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finemoe.cli.expert_memory import ExpertMemory


def gguf_facts(path: Path) -> dict[str, Any]:
    """Sizes of the model, and types and bytes of the experts of each layer.

    Raises:
        FinemoeError: the file cannot be loaded.
    """
    from finemoe.runtime.gguf_file import GgufFile, require_packages

    require_packages(path)
    import torch

    from finemoe.models.geometry import Geometry, model_on_meta
    from finemoe.models.layers import find_moe_layers
    from finemoe.runtime.expert_layout import ExpertLayout
    from finemoe.runtime.gguf_checkpoint import GgufCheckpoint
    from finemoe.runtime.gguf_config import config_of_gguf
    from finemoe.runtime.packing import Packing
    from finemoe.runtime.pretrained import in_one_line
    from finemoe.runtime.room import Room

    file = GgufFile(path)
    with in_one_line(f"{path}: of architecture {file.architecture!r}: "):
        config = config_of_gguf(file)
    model = model_on_meta(config)
    geometry = Geometry.of_model(model)
    layers = find_moe_layers(model)  # bfloat16, as the command line loads such a file
    plain = [ExpertLayout.of(layer) for layer in layers]
    matrices = [GgufCheckpoint(file, torch.float32).matrices(layer) for layer in layers]
    layouts = [
        one if found is None else ExpertLayout.packed(Packing(found, one)) for one, found in zip(plain, matrices, strict=True)
    ]
    types = [_types(found) for found in matrices]
    room = Room.of(layouts, "packed")
    geometry = replace(
        geometry,
        expert_format="gguf " + ", ".join(sorted({name for found in types for name in found})),
        expert_bytes=room.slot_bytes,
        all_experts_bytes=sum(layer.num_experts * one.nbytes for layer, one in zip(layers, layouts, strict=True)),
    )
    memory = ExpertMemory(
        slot_bytes=room.slot_bytes,
        room_bytes=room.room_bytes,
        num_layers=geometry.num_layers,
        num_experts=geometry.num_experts,
        top_k=geometry.experts_per_token,
    )
    of_layers = [
        {"layer": layer.index, "types": " ".join(found), "expert_bytes": one.nbytes}
        for layer, found, one in zip(layers, types, layouts, strict=True)
    ]
    return {"architecture": file.architecture, **asdict(geometry), **memory.facts(), "layers": of_layers}


def _types(matrices: Sequence[Any] | None) -> list[str]:
    """Names of the types of the gate, up and down projections."""
    from finemoe.packing.codec import Plain

    if matrices is None:
        return ["bfloat16"] * 3
    codecs = [matrix.codec for matrix in matrices]
    return [
        str(codec.dtype).removeprefix("torch.") if isinstance(codec, Plain) else codec.format.removeprefix("gguf ")
        for codec in codecs
    ]
