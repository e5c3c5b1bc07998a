"""Miniatures whose experts are made wider without changing what they compute: every hidden unit of an expert stands there `times`
times, and each copy gives its part of the sum. So routing stays the trained one, and bytes become those of a real expert.
"""

from pathlib import Path

import torch

from finemoe.models.layers import find_moe_layers
from finemoe.runtime.loading import load_model

_WIDTHS = ("moe_intermediate_size", "intermediate_size")  # of an expert, the first that a configuration has


def save_widened(name: str, times: int, folder: Path) -> None:
    """Write a miniature with experts `times` as wide, in bf16, and its tokenizer into a folder."""
    model, tokenizer = load_model(name, "bfloat16")
    with torch.no_grad():
        for layer in find_moe_layers(model):
            _widen(layer.experts, times)
    width = next(width for width in _WIDTHS if hasattr(model.config, width))
    setattr(model.config, width, getattr(model.config, width) * times)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _widen(experts: torch.nn.Module, times: int) -> None:
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    fused = torch.cat((gate.repeat(1, times, 1), up.repeat(1, times, 1)), dim=1)
    experts.gate_up_proj = torch.nn.Parameter(fused)
    experts.down_proj = torch.nn.Parameter(experts.down_proj.repeat(1, 1, times) / times)
