"""Miniatures whose experts are wider but compute the same: every hidden unit of an expert exists `times` times, and each copy
gives its part of the sum. Routing stays the trained one, and bytes and arithmetic come closer to those of a real expert.
"""

import torch
from torch import nn

from finemoe.models.layers import find_moe_layers


def widen(model: nn.Module, times: int) -> None:
    """Make all experts of a model with fused gate and up projections `times` as wide, in place."""
    with torch.no_grad():
        for layer in find_moe_layers(model):
            _widen(layer.experts, times)


def _widen(experts: nn.Module, times: int) -> None:
    gate, up = experts.gate_up_proj.chunk(2, dim=1)  # type: ignore[operator]
    experts.gate_up_proj = nn.Parameter(torch.cat((gate.repeat(1, times, 1), up.repeat(1, times, 1)), dim=1))
    experts.down_proj = nn.Parameter(experts.down_proj.repeat(1, 1, times) / times)  # type: ignore[operator]
