"""Fine-grained FP8: one byte per weight, and a scale for every block of rows and columns (DeepSeek-V3, Qwen3-FP8, GLM, MiniMax).

A value is its byte's value times the scale of its block, in float32, rounded once to the layer's compute type, as in
Transformers' `Fp8Dequantize`. If a size is not a multiple of the block size, the last blocks are smaller; there Transformers
(5.23) spreads blocks evenly, or fails (see `runtime.blockwise`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import PackedTensor, Packer
from finemoe.packing.host import unpack_fp8, unpacks_here

BLOCK = (128, 128)  # the size in all published checkpoints
_BIAS = 127  # exponent bias
_MOST = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class Fp8(Packer):
    """A matrix in e4m3 with block scales.

    Args:
        shape: rows, columns.
        block: rows and columns that share a scale.
        scale_shape, scale_dtype: shape and type of the scales as in the checkpoint: a grid or a single scale; floats, or powers
            of two as bytes (ue8m0).
        weight_dtype: type of the bytes.
    """

    shape: tuple[int, int]
    block: tuple[int, int] = BLOCK
    scale_shape: tuple[int, ...] = ()
    scale_dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float8_e4m3fn
    format: str = "fp8"

    @classmethod
    def of(cls, shape: tuple[int, int], block: tuple[int, int] = BLOCK, scale_dtype: torch.dtype = torch.float32) -> "Fp8":
        """Create one with a grid of scales that covers the whole matrix."""
        return cls(shape, block, grid_of(shape, block), scale_dtype)

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        weight = PackedTensor("weight", self.shape, self.weight_dtype)
        return weight, PackedTensor("scale", self.scale_shape, self.scale_dtype)

    @property
    def _grid(self) -> tuple[int, int]:
        """Grid of the scales; (1, 1) if a single one covers the whole matrix."""
        return (1, 1) if torch.Size(self.scale_shape).numel() == 1 else grid_of(self.shape, self.block)

    @property
    def _spread(self) -> tuple[int, int]:
        """Rows and columns covered by one scale."""
        return self.shape if self._grid == (1, 1) else self.block

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        weight, scales = packed
        if unpacks_here(out) and weight.dtype == torch.float8_e4m3fn and out.is_contiguous():
            grid = as_float32(scales).reshape(self._grid)
            unpack_fp8(weight, grid, self._spread, out)
            return
        scale_by_block(weight.float(), as_float32(scales), self.block, out)

    def pack(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """Pack a matrix; each block's largest value becomes the largest of e4m3, 448."""
        rows, columns = grid_of(self.shape, self.block)
        room = matrix.new_zeros((rows * self.block[0], columns * self.block[1]), dtype=torch.float32)
        room[: self.shape[0], : self.shape[1]] = matrix
        blocks = room.view(rows, self.block[0], columns, self.block[1])
        most = blocks.abs().amax(dim=(1, 3))
        scales = most / _MOST
        scales[scales == 0] = 1  # also if it underflows float32
        values = (blocks / scales[:, None, :, None]).clamp_(-_MOST, _MOST).view(room.shape)[: self.shape[0], : self.shape[1]]
        return [values.to(self.weight_dtype).contiguous(), scales.to(self.scale_dtype)]


def grid_of(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the grid of blocks that covers a matrix."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def as_float32(scales: torch.Tensor) -> torch.Tensor:
    """Scales as float32, whatever their type; bytes are exponents of powers of two."""
    return (scales.float() - _BIAS).exp2() if scales.dtype == torch.uint8 else scales.float()


def scale_by_block(values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], out: torch.Tensor) -> None:
    """Write values times their block's scale to `out`, rounded once.

    Args:
        values: [rows, columns] float32; overwritten with the products.
        scales: [1], or [blocks of rows, blocks of columns] float32.
        block: rows and columns that share a scale.
        out: [rows, columns], receives the products.
    """
    rows, columns = values.shape
    if scales.numel() == 1:
        values *= scales.reshape(())
    elif rows % block[0] or columns % block[1]:
        values *= scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    else:
        values.view(-1, block[0], columns // block[1], block[1]).mul_(scales[:, None, :, None])
    out.copy_(values)
