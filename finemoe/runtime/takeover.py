"""Takes a model's experts away and gives them back exactly (DESIGN 5, "The takeover").

Layer by layer: an arena's pages are taken as they fill, so that host memory hardly ever holds the experts twice on the way out.
(A page-locked arena is taken at once, and giving back needs the room of both.) The fused parameters keep their identity, shape,
type and device, but hold a single NaN stretched over the whole shape: nothing can read a wrong weight in silence.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from finemoe.models.layers import MoELayer
from finemoe.runtime.expert_layout import room_for
from finemoe.runtime.tiers import ExpertStore


def empty(layer: MoELayer, device: torch.device) -> None:
    """Leave a layer's expert parameters without memory."""
    for parameter in layer.expert_parameters().values():
        parameter.data = torch.full((), float("nan"), dtype=parameter.dtype, device=device).expand(parameter.shape)


def is_empty(layer: MoELayer) -> bool:
    """Whether a layer's expert parameters were left without memory."""
    return all(parameter.untyped_storage().nbytes() < parameter.nbytes for parameter in layer.expert_parameters().values())


class Takeover:
    """Moves a model's experts into a record store and the rest of it to a device, from `begin` on; `undo` is the inverse of as
    much as was done.

    Args:
        layers: whose experts go; records: where they go; device: where the model computes.
        holds_weights: False where the experts are in the store already and the model never had them (finemoe.load): `undo` then
            leaves the parameters empty, as they were.
    """

    def __init__(
        self, model: nn.Module, layers: list[MoELayer], records: ExpertStore, device: torch.device, holds_weights: bool
    ) -> None:
        self._model, self._layers, self._records, self._device, self._holds_weights = (
            model,
            layers,
            records,
            device,
            holds_weights,
        )
        self._taken: list[tuple[MoELayer, torch.device]] = []
        self._homes: list[tuple[torch.Tensor, torch.device]] = []

    def begin(self) -> None:
        """Do it; what breaks off in here is for the caller to undo."""
        for layer in self._layers:
            if self._holds_weights:
                self._take(layer)
            empty(layer, self._device)
        self._move_rest(self._model, self._layers, self._device)

    def undo(self) -> None:
        """Restore every parameter's data and device; what cannot be restored stays empty (NaN) and is raised at the end."""
        failure: Exception | None = None
        for layer, device in self._taken:
            try:
                restore(layer, self._records, device)
            except Exception as error:
                failure = failure or error
        for tensor, device in self._homes:
            tensor.data = tensor.data.to(device)
        self._taken, self._homes = [], []
        if failure is not None:
            raise failure

    def _take(self, layer: MoELayer) -> None:
        parameters = layer.expert_parameters()
        for expert in range(layer.num_experts):
            self._records.write(layer.index, expert, {name: parameter.data[expert] for name, parameter in parameters.items()})
        self._taken.append((layer, next(iter(parameters.values())).device))

    def _move_rest(self, model: nn.Module, layers: list[MoELayer], device: torch.device) -> None:
        taken = {id(parameter) for layer in layers for parameter in layer.expert_parameters().values()}
        for tensor in _tensors_of(model):
            if id(tensor) not in taken and tensor.device != device:
                self._homes.append((tensor, tensor.device))
                tensor.data = tensor.data.to(device)


def restore(layer: MoELayer, records: ExpertStore, device: torch.device) -> None:
    """Give a layer's expert parameters their weights back, on a device."""
    layout, parameters = records.layouts[layer.index], layer.expert_parameters()
    weights = {field.name: room_for(field, layer.num_experts, device) for field in layout.fields}
    for expert in range(layer.num_experts):
        for name, view in layout.views(records.record(layer.index, expert), expert).items():
            weights[name][expert].copy_(view)
    for name, weight in weights.items():
        parameters[name].data = weight


def _tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


_HOOKS = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict) and "_hooks" in name]


class ModulesAsTheyWere:
    """A model's modules and their hooks at one moment, to be had back if what follows breaks off; the data of its tensors is not
    in it."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = {module: dict(module.__dict__) for module in model.modules()}
        self._hooks = {(module, name): dict(module.__dict__[name]) for module in self._attributes for name in _HOOKS}

    def restore(self) -> None:
        """Make them what they were."""
        for module, attributes in self._attributes.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for (module, name), hooks in self._hooks.items():
            current: dict[Any, Any] = module.__dict__[name]
            current.clear()
            current.update(hooks)

    def forget(self) -> None:
        """What follows has succeeded: `restore` does nothing any more."""
        self._attributes, self._hooks = {}, {}
