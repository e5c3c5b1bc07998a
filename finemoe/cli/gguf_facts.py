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
    from finemoe.runtime.gguf_file import require_packages

    require_packages(path)
    from finemoe.models.geometry import Geometry
    from finemoe.runtime.gguf_layouts import gguf_layouts
    from finemoe.runtime.room import Room

    found = gguf_layouts(path)
    geometry = Geometry.of_model(found.model)
    types = [_types(matrices) for matrices in found.matrices]
    room = Room.of(found.layouts, "packed")
    geometry = replace(
        geometry,
        expert_format="gguf " + ", ".join(sorted({name for names in types for name in names})),
        expert_bytes=room.slot_bytes,
        all_experts_bytes=found.all_experts_bytes,
    )
    memory = ExpertMemory(
        slot_bytes=room.slot_bytes,
        room_bytes=room.room_bytes,
        num_layers=geometry.num_layers,
        num_experts=geometry.num_experts,
        top_k=geometry.experts_per_token,
    )
    of_layers = [
        {"layer": layer.index, "types": " ".join(names), "expert_bytes": one.nbytes}
        for layer, names, one in zip(found.layers, types, found.layouts, strict=True)
    ]
    return {"architecture": found.architecture, **asdict(geometry), **memory.facts(), "layers": of_layers}


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
