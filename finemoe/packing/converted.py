"""Packed tensors that only Transformers' own conversion can unpack, whatever its operations."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor

_turn = threading.Lock()  # conversions are written for loading one model at a time, so threads of several engines take turns


@dataclass(frozen=True)
class Converted(Codec):
    """A parameter of one expert, given by the tensors that a conversion makes it from.

    Args:
        shape: shape of the parameter.
        packed: the value of `tensors`.
        convert: returns the parameter, given the tensors in that order.
        format: name of the format.
    """

    shape: tuple[int, ...]
    packed: tuple[PackedTensor, ...]
    convert: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    format: str

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        return self.packed

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        with _turn:
            out.copy_(self.convert(packed))
