"""A matrix of which only the size is known: a configuration says how it is packed, but nothing here unpacks its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Codec, PackedTensor


@dataclass(frozen=True)
class Counted(Codec):
    """What such a matrix takes, for `finemoe info` and the simulator.

    Args:
        packed: what `tensors` is, shapes without an axis of experts.
    """

    shape: tuple[int, int]
    packed: tuple[PackedTensor, ...]
    format: str

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        return self.packed

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Refuses.

        Raises:
            FinemoeError: always.
        """
        raise FinemoeError(f"experts in {self.format} can be counted here, but not unpacked")
