"""A matrix of known size only: a configuration describes its packing, but finemoe cannot unpack its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Codec, PackedTensor


@dataclass(frozen=True)
class Counted(Codec):
    """The size of such a matrix, for `finemoe info` and the simulator.

    Args:
        shape: shape of the matrix.
        packed: the value of `tensors`, shapes without an expert axis.
        format: name of the format.
    """

    shape: tuple[int, int]
    packed: tuple[PackedTensor, ...]
    format: str

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        return self.packed

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Refuse to unpack.

        Raises:
            FinemoeError: always.
        """
        raise FinemoeError(
            f"finemoe knows the size of experts in {self.format}, but cannot unpack them; use a checkpoint in another format"
        )
