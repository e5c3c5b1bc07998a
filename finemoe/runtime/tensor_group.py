"""Tensors of a checkpoint that together form one parameter or several."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming, WeightTransform


@dataclass(frozen=True)
class Group:
    """Tensors that together form one parameter or several.

    Attributes:
        target: the (first) parameter.
        transform: Transformers' conversion of the tensors.
        sources: names of the tensors by the pattern that they match.
    """

    target: str
    transform: WeightTransform
    sources: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def operations(self) -> list[Any]:
        """The operations on the tensors, in order."""
        return self.transform.operations if isinstance(self.transform, WeightConverter) else []

    @property
    def dequantizes(self) -> bool:
        """Whether they are packed: the first operation dequantises them."""
        return bool(self.operations) and getattr(self.operations[0], "hf_quantizer", None) is not None

    @property
    def is_stacked(self) -> bool:
        """Whether the first operation, after any dequantising, stacks one tensor per expert."""
        operations = self._after_unpacking
        return bool(operations) and isinstance(operations[0], MergeModulelist)

    def is_by_expert(self, num_experts: int) -> bool:
        """Whether one expert's tensors form that expert's part of the result: all operations act on other axes."""
        if isinstance(self.transform, WeightRenaming):
            return True
        axes = [_axes(operation) for operation in self._after_unpacking]
        if self.is_stacked and axes.pop(0) != [0]:
            return False
        count = num_experts if self.is_stacked else 1
        is_complete = self.dequantizes or set(self.sources) == set(self.transform.source_patterns)
        return is_complete and all(map(_has_no_first, axes)) and all(len(names) == count for names in self.sources.values())

    @property
    def _after_unpacking(self) -> list[Any]:
        return self.operations[1:] if self.dequantizes else self.operations


def _axes(operation: Any) -> list[int]:
    return [value for name, value in vars(operation).items() if name.startswith("dim")]


def _has_no_first(axes: list[int]) -> bool:
    return min(axes, default=0) > 0
