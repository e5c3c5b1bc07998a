"""compressed-tensors' integers of 4 or 8 bits, packed into int32 along a row, with a scale for every group of a row.

The product of an integer and its scale is rounded to the scales' type, and then to the layer's compute type, as in
compressed-tensors, which Transformers calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor

WORD_BITS = 32
BITS = (4, 8)


@dataclass(frozen=True)
class IntWords(Codec):
    """A matrix of integers around zero.

    Args:
        shape: rows, columns.
        bits: bits of an integer; a word holds several.
        num_groups: groups per row, each with a scale.
        scale_dtype: type of the scales.
    """

    shape: tuple[int, int]
    bits: int
    num_groups: int
    scale_dtype: torch.dtype

    @property
    def format(self) -> str:  # type: ignore[override]
        """See Codec."""
        return f"compressed-tensors int{self.bits}"

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        rows, columns = self.shape
        return (
            PackedTensor("packed", (rows, -(-columns * self.bits // WORD_BITS)), torch.int32),
            PackedTensor("scale", (rows, self.num_groups), self.scale_dtype),
            PackedTensor("shape", (2,), torch.int64),
        )

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        words, scales, _ = packed
        rows, columns = self.shape
        numbers = self._numbers(words)[:, :columns]
        values = numbers.to(scales.dtype).view(rows, self.num_groups, -1)
        out.copy_(values.mul_(scales[..., None]).view(rows, columns))

    def _numbers(self, words: torch.Tensor) -> torch.Tensor:
        """[rows, integers] int8, including padding of the last word; the lowest bits of a word are its first integer."""
        codes = words.view(torch.uint8)
        if self.bits == BITS[0]:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).view(len(words), -1)
        return codes.view(torch.int8) - (1 << self.bits - 1)
