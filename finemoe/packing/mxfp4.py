"""MXFP4: two values per byte, and a power of two for every 32 of them (gpt-oss).

A nibble encodes one of sixteen values; the lower one comes first. The product with the block's power of two is rounded once to
the layer's compute type, as in Transformers' `Mxfp4Dequantize`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from finemoe.packing.codec import PackedTensor, Packer
from finemoe.packing.host import unpack_mxfp4, unpacks_here

_BIAS = 127  # exponent bias
BLOCK = 32  # values that share a scale
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_TIES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # midway between neighbours
_LARGEST_EXPONENT = 2  # largest exponent of the values: 4 = 2^2


@cache
def pairs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Both values of every byte, [256, 2]."""
    values = torch.tensor(VALUES, dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    found = torch.stack((values[byte & 15], values[byte >> 4]), dim=1)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # other streams read it too
    return found


@dataclass(frozen=True)
class Mxfp4(Packer):
    """A matrix in blocks along its rows, the last block padded.

    Args:
        shape: rows, columns.
    """

    shape: tuple[int, int]
    format: str = "mxfp4"

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        rows, count = self.shape[0], -(-self.shape[1] // BLOCK)
        return PackedTensor("blocks", (rows, count, BLOCK // 2), torch.uint8), PackedTensor("scales", (rows, count), torch.uint8)

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        if unpacks_here(out):
            unpack_mxfp4(packed, out)
            return
        blocks, scales = packed
        rows, columns = self.shape
        values = pairs(out.dtype, out.device)[blocks.reshape(-1).int()].view(rows, -1, BLOCK)
        torch.ldexp(values, scales[..., None].int() - _BIAS, out=values)
        out.copy_(values.view(rows, -1)[:, :columns])

    def pack(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """Pack a matrix. A block's scale is its largest value's, rounded down to a power of two; values are rounded to the
        nearest, ties to the even code, and values beyond 6 to 6 (OCP Microscaling 1.0)."""
        rows, columns = self.shape
        count = -(-columns // BLOCK)
        room = matrix.new_zeros((rows, count * BLOCK), dtype=torch.float32)
        room[:, :columns] = matrix
        blocks = room.view(rows, count, BLOCK)
        exponents = torch.frexp(blocks.abs().amax(dim=2)).exponent - 1 - _LARGEST_EXPONENT
        exponents = exponents.clamp(-127, 127)
        codes = _codes(torch.ldexp(blocks, -exponents[..., None]))
        return [codes[..., ::2] | (codes[..., 1::2] << 4), (exponents + 127).to(torch.uint8)]


def _codes(values: torch.Tensor) -> torch.Tensor:
    """The nibble of the nearest value, uint8."""
    size = values.abs()
    ties = torch.tensor(_TIES, device=values.device)
    below = torch.bucketize(size, ties)  # a tie counts as below
    above = torch.bucketize(size, ties, right=True)
    code = torch.where(below % 2 == 0, below, above)
    return (code + 8 * torch.signbit(values)).to(torch.uint8)
