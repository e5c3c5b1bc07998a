"""How one layer's experts are packed: which codec holds which part of which parameter, and all of it unpacked or packed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from finemoe.errors import FinemoeError
from finemoe.models.layers import MoELayer
from finemoe.models.packed_sizes import expert_codecs
from finemoe.packing.codec import Codec, PackedTensor, Packer, Plain
from finemoe.packing.formats import packer
from finemoe.runtime.expert_layout import ExpertLayout


@dataclass(frozen=True)
class Matrix:
    """A part of one parameter of an expert: some of its rows, packed by themselves.

    Attributes:
        parameter: its name; first_row: where the part begins; codec: how it is packed.
    """

    parameter: str
    first_row: int
    codec: Codec

    @cached_property
    def tensors(self) -> dict[str, PackedTensor]:
        """What holds it, by a name that no other matrix's has."""
        return {f"{self.parameter}.{self.first_row}.{tensor.name}": tensor for tensor in self.codec.tensors}

    def part_of(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The rows meant."""
        return weights[self.parameter][self.first_row : self.first_row + self.codec.shape[0]]


@dataclass(frozen=True)
class Packing:
    """How one layer's experts are packed.

    Attributes:
        matrices: that together make all parameters; weights: how these lie in memory once they are unpacked.
    """

    matrices: tuple[Matrix, ...]
    weights: ExpertLayout

    @cached_property
    def tensors(self) -> dict[str, PackedTensor]:
        """What a record holds, by name."""
        return {name: tensor for matrix in self.matrices for name, tensor in matrix.tensors.items()}

    @property
    def formats(self) -> list[str]:
        """Names of the formats, those of which most is packed first."""
        nbytes: dict[str, int] = {}
        for matrix in self.matrices:
            size = sum(tensor.nbytes for tensor in matrix.codec.tensors)
            nbytes[matrix.codec.format] = nbytes.get(matrix.codec.format, 0) + size
        return sorted(nbytes, key=lambda name: -nbytes[name])

    def unpack(self, packed: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        """Write one expert's weights, by parameter name, from its packed tensors, by name."""
        for matrix in self.matrices:
            matrix.codec.unpack([packed[name] for name in matrix.tensors], matrix.part_of(weights))

    def pack(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One expert's packed tensors, by name; where all codecs are packers."""
        packed: dict[str, torch.Tensor] = {}
        for matrix in self.matrices:
            part = matrix.part_of(weights)
            made = matrix.codec.pack(part) if isinstance(matrix.codec, Packer) else [part]
            packed |= dict(zip(matrix.tensors, made, strict=True))
        return packed


def matrices_as_published(model: Any, layer: MoELayer, told: Mapping[str, Any]) -> tuple[Matrix, ...] | None:
    """A layer's experts as a checkpoint has them; None if it leaves them as they are.

    Args:
        told: its configuration's quantization_config.
    Raises:
        FinemoeError: it is quantised in a way in which nothing can be packed here.
    """
    found, num_rows = [], dict.fromkeys(layer.expert_parameters(), 0)
    for matrix, codec in expert_codecs(model, layer, told):
        if not isinstance(codec, Packer | Plain):
            raise FinemoeError(
                f"nothing can be packed as {codec.format} here; leave quantization_config out, or use expert_format"
            )
        found.append(Matrix(matrix.parameter, num_rows[matrix.parameter], codec))
        num_rows[matrix.parameter] += matrix.shape[0]
    return None if all(isinstance(matrix.codec, Plain) for matrix in found) else tuple(found)


def packing_matrices(layer: MoELayer, expert_format: str) -> tuple[Matrix, ...]:
    """Every parameter of a layer's experts in one format; vectors, as biases are, stay as they are."""
    is_transposed = bool(layer.experts.is_transposed)
    found = []
    for name, parameter in layer.expert_parameters().items():
        shape = tuple(parameter.shape[1:])
        is_matrix = len(shape) == 2
        codec = packer(expert_format, (shape[0], shape[1]), is_transposed) if is_matrix else Plain(shape, parameter.dtype)
        found.append(Matrix(name, 0, codec))
    return tuple(found)
