"""The common interface of all packed formats: converts between a matrix of an expert and the tensors that a checkpoint holds of
it.

A codec never defines the value of a weight: it repeats, operation by operation, what Transformers does when it dequantises the
same checkpoint, so that both give the same bits. Codecs are values: two layers that are packed alike have equal codecs, unless
a conversion of Transformers unpacks them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedTensor:
    """One of the tensors that hold a packed matrix.

    Attributes:
        name: its role, such as "weight" or "scale".
        shape, dtype: as in the checkpoint, without an expert axis.
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
        format: name of the format, as users know it.
        shape: shape of the matrix, as the layer computes with it.
        tensors: the packed tensors.
    """

    format: str
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def tensors(self) -> tuple[PackedTensor, ...]:
        """The tensors that hold the matrix, in the order that `unpack` expects."""

    @abstractmethod
    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Write the matrix to `out`, of shape `shape` and the layer's compute type, on the same device."""


class Packer(Codec):
    """A codec that can also pack, as `expert_format` requests. Packing loses precision."""

    @abstractmethod
    def pack(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that hold a matrix of shape `shape`, rounded."""


@dataclass(frozen=True)
class Plain(Codec):
    """A matrix that is not packed, such as a bias or one that a checkpoint exempts from its quantisation."""

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
