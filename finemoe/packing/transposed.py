"""A matrix that is packed in transposed form: its first axis is the layer's input, along which blocks run (gpt-oss)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor, Packer


@dataclass(frozen=True)
class Transposed(Packer):
    """A matrix whose transpose is held by a codec.

    Args:
        codec: codec of the transpose; it must be a packer for `pack`.
    """

    codec: Codec

    @property
    def format(self) -> str:  # type: ignore[override]
        """The codec's format."""
        return self.codec.format

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """See Codec."""
        rows, columns = self.codec.shape
        return columns, rows

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        return self.codec.tensors

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        self.codec.unpack(packed, out.t())

    def pack(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """See Packer."""
        assert isinstance(self.codec, Packer)
        return self.codec.pack(matrix.t())
