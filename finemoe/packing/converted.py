"""Packed tensors that Transformers' own conversion unpacks, whatever it does to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor


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
        return self.packed

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        out.copy_(self.convert(packed))
