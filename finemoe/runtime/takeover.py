"""Moves a model's experts out and restores them exactly (DESIGN 5, "The takeover").

Experts move layer by layer, and an arena takes pages only as they fill, so host memory hardly ever holds the experts twice on the
way out. (A page-locked arena is allocated at once, and restoring needs room for both.) The fused parameters keep their identity,
shape, type and device, but hold a single NaN expanded to the whole shape: no code can silently read a wrong weight.
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
    """Moves a model's experts to a record store and the rest to a device. `begin` does so; `undo` reverts what was done.

    Args:
        model: the model to take over.
        layers: MoE layers whose experts move.
        records: store that receives the experts.
        device: device on which the model computes.
        holds_weights: False if the store already holds the experts and the model never did (finemoe.load); `undo` then leaves the
            parameters empty, as they were.
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
        """Move everything; after a failure in here the caller runs `undo`."""
        for layer in self._layers:
            if self._holds_weights:
                self._take(layer)
            empty(layer, self._device)
        self._move_rest(self._model, self._layers, self._device)

    def undo(self) -> None:
        """Restore every parameter's data and device. What cannot be restored stays empty (NaN) and raises at the end."""
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
    """Put a layer's weights back into its expert parameters, on a device."""
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
    """A snapshot of a model's modules and their hooks, without tensor data, to restore them if a later step fails."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = {module: dict(module.__dict__) for module in model.modules()}
        self._hooks = {(module, name): dict(module.__dict__[name]) for module in self._attributes for name in _HOOKS}

    def restore(self) -> None:
        """Put modules and hooks back into the state of the snapshot."""
        for module, attributes in self._attributes.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for (module, name), hooks in self._hooks.items():
            current: dict[Any, Any] = module.__dict__[name]
            current.clear()
            current.update(hooks)

    def forget(self) -> None:
        """Drop the snapshot after the later steps have succeeded: `restore` then does nothing."""
        self._attributes, self._hooks = {}, {}
