"""INT8: one signed byte per weight and a scale for every row; used by `expert_format="int8"`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import PackedTensor, Packer

_MOST = 127


@dataclass(frozen=True)
class Int8(Packer):
    """A symmetrically quantised matrix with a float32 scale per row.

    Args:
        shape: rows, columns.
    """

    shape: tuple[int, int]
    format: str = "int8"

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        return PackedTensor("weight", self.shape, torch.int8), PackedTensor("scale", (self.shape[0], 1), torch.float32)

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        out.copy_(packed[0].float().mul_(packed[1]))

    def pack(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """Pack a matrix; each row's largest value becomes 127."""
        values = matrix.float()
        most = values.abs().amax(dim=1, keepdim=True)
        scales = most / _MOST
        scales[scales == 0] = 1  # also if it underflows float32
        return [(values / scales).round_().clamp_(-_MOST, _MOST).to(torch.int8), scales]
