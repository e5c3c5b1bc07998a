"""The experts seam of Transformers: how a layer's call reaches finemoe, and how the model's own code computes it (DESIGN 5).

The class's own eager forward runs on a light view of the module whose weights, indexed by expert, come from the expert memory.
Layout, activation, accumulation type and summation order are thus the model's own, and the result is bit-equal.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from finemoe.errors import EngineError

IMPLEMENTATION = "finemoe"
_ATTRIBUTE = "_finemoe_layer"
LayerFunction = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class WeightSource(Protocol):
    """Provides one expert's weights by parameter name, completely loaded and safe to read."""

    def weights(self, expert: int) -> dict[str, torch.Tensor]: ...


class _Index:
    """Reads an expert's number from the device once, although each of its parameters is looked up by it."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor | int, int] = (-1, -1)

    def number(self, expert: torch.Tensor | int) -> int:
        if expert is not self._last[0]:
            self._last = expert, int(expert)
        return self._last[1]


class _WeightsByExpert:
    """Stands in for a fused parameter [J, ...]: indexing it by expert returns that expert's weight."""

    def __init__(self, name: str, source: WeightSource, parameter: torch.Tensor, index: _Index) -> None:
        self._name, self._source, self._parameter, self._index = name, source, parameter, index

    def __getitem__(self, expert: torch.Tensor | int) -> torch.Tensor:
        return self._source.weights(self._index.number(expert))[self._name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parameter, name)  # shape, dtype and device are the parameter's own


class ExpertsView:
    """An experts module with its fused weights replaced; everything else comes from the module."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], source: WeightSource) -> None:
        index = _Index()
        self.__dict__.update({name: _WeightsByExpert(name, source, getattr(module, name), index) for name in names})
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        is_own_method = getattr(value, "__self__", None) is self._module
        return value.__func__.__get__(self) if is_own_method else value  # a method that reads weights must see the view


def eager_forward(
    module: nn.Module,
    names: tuple[str, ...],
    source: WeightSource,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Compute the experts with the module class's own eager forward and the weights of `source`; returns [T, H].

    Args:
        module: the experts module.
        names: the fused parameters to replace.
        source: provides the weights.
        hidden_states: [T, H].
        top_k_index, top_k_weights: [T, K].
    """
    forward: Callable[..., torch.Tensor] = type(module).forward.__wrapped__  # type: ignore[attr-defined]
    return forward(ExpertsView(module, names, source), hidden_states, top_k_index, top_k_weights)


def connect(module: nn.Module, function: LayerFunction) -> Callable[[], None]:
    """Redirect this experts module's calls to `function`.

    The module gets a private copy of its configuration, since two models built from one configuration share it.

    Returns:
        A function that reverts this; calling it again is harmless.
    """
    original: Any = module.config
    previous: LayerFunction | None = getattr(module, _ATTRIBUTE, None)
    private = copy.copy(original)
    private._experts_implementation_internal = IMPLEMENTATION
    module.config = private
    setattr(module, _ATTRIBUTE, function)

    def disconnect() -> None:
        module.config = original
        if previous is None:
            module.__dict__.pop(_ATTRIBUTE, None)
        else:
            setattr(module, _ATTRIBUTE, previous)

    return disconnect


def is_connected(module: nn.Module) -> bool:
    return hasattr(module, _ATTRIBUTE)


def disable(module: nn.Module) -> None:
    """Refuse every call of an experts module whose weights are gone."""
    connect(module, _refuse)


def is_without_weights(module: nn.Module) -> bool:
    """Whether `disable` is in effect."""
    return getattr(module, _ATTRIBUTE, None) is _refuse


def _refuse(*_: Any) -> torch.Tensor:
    raise EngineError("the engine that held this model's experts is closed; load the model again with finemoe.load")


@torch.compiler.disable  # `generate` compiles the forward for a static cache; moving weights cannot be part of a graph
def _dispatch(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    function: LayerFunction = getattr(module, _ATTRIBUTE)
    return function(module, hidden_states, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _dispatch)
