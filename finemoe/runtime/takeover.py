"""Takes a model's experts away and gives them back exactly (DESIGN 5, "The takeover").

The fused parameters keep their identity, shape, type and device, but hold a single NaN stretched over the whole shape: nothing
can read a wrong weight in silence. Everything else of the model moves to the device.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.runtime.layers import MoELayer
from finemoe.runtime.tiers import HostTier


class Takeover:
    """Done on construction, undone by `undo`."""

    def __init__(self, model: nn.Module, layers: list[MoELayer], host: HostTier, device: torch.device) -> None:
        self._layers, self._host = layers, host
        self._homes: list[tuple[torch.Tensor, torch.device]] = []
        self._expert_devices = [next(iter(layer.expert_parameters().values())).device for layer in layers]
        for layer in layers:
            for parameter in layer.expert_parameters().values():
                nan = torch.full((), float("nan"), dtype=parameter.dtype, device=device)
                parameter.data = nan.expand(parameter.shape)
        taken = {id(parameter) for layer in layers for parameter in layer.expert_parameters().values()}
        for tensor in _tensors_of(model):
            if id(tensor) not in taken and tensor.device != device:
                self._homes.append((tensor, tensor.device))
                tensor.data = tensor.data.to(device)
        self._refusal = model.register_state_dict_pre_hook(_refuse_state_dict)

    def undo(self) -> None:
        """Restore every parameter's data and device."""
        self._refusal.remove()
        for layer, layout, device in zip(self._layers, self._host.layouts, self._expert_devices, strict=True):
            parameters = layer.expert_parameters()
            for field in layout.fields:
                parameters[field.name].data = self._host.fused(layer.index, field).to(device)
        for tensor, device in self._homes:
            tensor.data = tensor.data.to(device)


def _tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _refuse_state_dict(*_: Any) -> None:
    raise FinemoeError("an offloaded model has no weights of its own to save; call engine.close() first")
