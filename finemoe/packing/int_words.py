"""compressed-tensors' whole numbers of 4 or 8 bits, packed into int32 along a row, with a scale for every group of a row.

The product of a number and its scale is rounded to the scales' own type, and then to that which the layer computes in: so
compressed-tensors unpacks them, and Transformers takes what it gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor

WORD_BITS = 32
BITS = (4, 8)


@dataclass(frozen=True)
class IntWords(Codec):
    """A matrix of whole numbers around zero.

    Args:
        shape: rows, columns. bits: of a number, of which a word holds several. num_groups: of a row, each with a scale.
        scale_dtype: of the scales.
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
        """[rows, numbers] int8, those that fill up the last word at the end; the lowest bits of a word are its first number."""
        codes = words.view(torch.uint8)
        if self.bits == BITS[0]:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).view(len(words), -1)
        return codes.view(torch.int8) - (1 << self.bits - 1)
