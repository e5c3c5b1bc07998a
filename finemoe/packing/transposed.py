"""A matrix that is packed the other way round: its first axis is the layer's input, which blocks lie along (gpt-oss)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor, Packer


@dataclass(frozen=True)
class Transposed(Packer):
    """A matrix of which a codec holds the transpose.

    Args:
        codec: of the transpose; one that packs, for `pack`.
    """

    codec: Codec

    @property
    def format(self) -> str:  # type: ignore[override]
        """The codec's."""
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
