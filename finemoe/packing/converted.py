"""Packed tensors that Transformers' own conversion unpacks, whatever it does to them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor

_turn = threading.Lock()  # several engines' threads take turns in code that was made for loading, one model at a time


@dataclass(frozen=True)
class Converted(Codec):
    """A parameter of one expert as the tensors from which a conversion makes it.

    Args:
        convert: takes the tensors, as in `tensors`, and gives the parameter; packed: what `tensors` is.
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
