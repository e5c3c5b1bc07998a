"""What loading a GGUF file would hold of it, from the file's header alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from finemoe.models.geometry import model_on_meta
from finemoe.models.layers import MoELayer, find_moe_layers
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.gguf_checkpoint import GgufCheckpoint
from finemoe.runtime.gguf_config import config_of_gguf
from finemoe.runtime.gguf_file import GgufFile
from finemoe.runtime.packing import Packing
from finemoe.runtime.pretrained import in_one_line


class GgufLayouts(NamedTuple):
    """A GGUF file's model without its weights.

    Attributes:
        architecture: llama.cpp's name for it. config: the configuration. model: on the meta device, in bfloat16, as the command
            line loads such a file. layers: its MoE layers.
        matrices: by layer, an expert's packed matrices, or None if it is not packed. layouts: by layer, an expert's record.
    """

    architecture: str
    config: Any
    model: Any
    layers: Sequence[MoELayer]
    matrices: Sequence[Any]
    layouts: Sequence[ExpertLayout]

    @property
    def all_experts_bytes(self) -> int:
        """Bytes of the records of all experts."""
        return sum(layer.num_experts * one.nbytes for layer, one in zip(self.layers, self.layouts, strict=True))


def gguf_layouts(path: Path) -> GgufLayouts:
    """Read a file's header.

    Raises:
        FinemoeError: the file cannot be loaded.
    """
    file = GgufFile(path)
    with in_one_line(f"{path}: of architecture {file.architecture!r}: "):
        config = config_of_gguf(file)
    model = model_on_meta(config)
    layers = find_moe_layers(model)
    matrices = [GgufCheckpoint(file, torch.float32).matrices(layer) for layer in layers]
    plain = [ExpertLayout.of(layer) for layer in layers]
    layouts = [
        one if found is None else ExpertLayout.packed(Packing(found, one)) for one, found in zip(plain, matrices, strict=True)
    ]
    return GgufLayouts(file.architecture, config, model, layers, matrices, layouts)
