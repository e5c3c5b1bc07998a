"""What every packed format has in common: a matrix of an expert as the tensors that a checkpoint holds of it, and back.

A codec never decides what a weight is worth: it repeats, operation for operation, what Transformers does when it dequantises the
same checkpoint, so that both give the same bits. Codecs are values: two layers that are packed alike have equal ones, unless a
conversion of Transformers unpacks them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedTensor:
    """One of the tensors that hold a packed matrix.

    Attributes:
        name: what it is, as "weight" or "scale"; shape, dtype: as the checkpoint has it, without an axis of experts.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class Codec(ABC):
    """One matrix (or vector) of an expert in its packed form.

    Attributes:
        format: its name, as users know it. shape: of the matrix, as the layer computes with it. tensors: what is packed.
    """

    format: str
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def tensors(self) -> tuple[PackedTensor, ...]:
        """What holds the matrix, in the order in which `unpack` takes it."""

    @abstractmethod
    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Write the matrix into `out`, of `shape` and of the type that the layer computes in, on the same device."""


class Packer(Codec):
    """A codec that can pack, too: what `expert_format` names. It loses precision, and says so."""

    @abstractmethod
    def pack(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that hold a matrix of `shape`, rounded."""


@dataclass(frozen=True)
class Plain(Codec):
    """A matrix that is not packed at all, as biases are, or what a checkpoint leaves out of its quantisation."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    format: str = "plain"

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        return (PackedTensor("weight", self.shape, self.dtype),)

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        out.copy_(packed[0])
