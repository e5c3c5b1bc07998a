"""Runs Transformers' conversion of a checkpoint's tensors directly, for all experts at once or for one."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from finemoe.runtime.tensor_group import Group


class OneExpert:
    """A model as seen by a conversion of one expert's tensors: its experts' parameters hold one expert.

    It does not keep the model alive, since the conversion may outlive it: records are freed after the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def get_parameter(self, name: str) -> torch.Tensor:
        """A parameter as in a module, but of one expert."""
        return self._there().get_parameter(name)[:1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._there(), name)

    def _there(self) -> nn.Module:
        model = self._model()
        assert model is not None, "the model is gone"
        return model


class ExpertConversion:
    """Makes one expert's parameter from its packed tensors, as a checkpoint's conversion does for all experts.

    Args:
        group: the tensors.
        patterns: patterns of its sources, in the order of the tensors.
        model: the model that has the parameter.
    """

    def __init__(self, group: Group, patterns: Sequence[str], model: nn.Module) -> None:
        self._group, self._patterns, self._model = group, tuple(patterns), OneExpert(model)

    def __call__(self, packed: Sequence[torch.Tensor]) -> torch.Tensor:
        """The parameter, without an expert axis, from packed tensors without one."""
        is_stacked = self._group.is_stacked
        parts = {pattern: [one if is_stacked else one[None]] for pattern, one in zip(self._patterns, packed, strict=True)}
        return converted(self._group, parts, self._model)[self._group.target][0]


def converted(group: Group, parts: Mapping[str, list[torch.Tensor]], model: Any) -> dict[str, torch.Tensor]:
    """Everything that a group forms, by parameter name.

    Args:
        group: the group.
        parts: tensors by pattern, in the order of the group's sources.
        model: the model that has the parameters.
    """
    transform = group.transform
    transform.collected_tensors.clear()  # an interrupt may have left some, which would be mixed into this call
    for pattern, tensors in parts.items():
        for name, tensor in zip(group.sources[pattern], tensors, strict=False):
            transform.add_tensor(group.target, name, pattern, tensor)  # type: ignore[arg-type]
    made = transform.convert(group.target, model=model, config=model.config)  # type: ignore[attr-defined]
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
