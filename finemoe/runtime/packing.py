"""How one layer's experts are packed: which codec holds which part of which parameter, and how to unpack or pack all of it."""

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
    """A part of one parameter of an expert: some of its rows, packed separately.

    Attributes:
        parameter: name of the parameter.
        first_row: first row of the part.
        codec: how it is packed.
    """

    parameter: str
    first_row: int
    codec: Codec

    @cached_property
    def tensors(self) -> dict[str, PackedTensor]:
        """The packed tensors of the matrix, under names that no other matrix uses."""
        return {f"{self.parameter}.{self.first_row}.{tensor.name}": tensor for tensor in self.codec.tensors}

    def part_of(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The rows of the matrix."""
        return weights[self.parameter][self.first_row : self.first_row + self.codec.shape[0]]


@dataclass(frozen=True)
class Packing:
    """How one layer's experts are packed.

    Attributes:
        matrices: all matrices, which together form all parameters.
        weights: memory layout of the parameters once they are unpacked.
    """

    matrices: tuple[Matrix, ...]
    weights: ExpertLayout

    @cached_property
    def tensors(self) -> dict[str, PackedTensor]:
        """The contents of a record, by name."""
        return {name: tensor for matrix in self.matrices for name, tensor in matrix.tensors.items()}

    @property
    def formats(self) -> list[str]:
        """Names of the formats, the one with most bytes first."""
        nbytes: dict[str, int] = {}
        for matrix in self.matrices:
            size = sum(tensor.nbytes for tensor in matrix.codec.tensors)
            nbytes[matrix.codec.format] = nbytes.get(matrix.codec.format, 0) + size
        return sorted(nbytes, key=lambda name: -nbytes[name])

    def unpack(self, packed: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        """Unpack one expert: fill its weights, by parameter name, from its packed tensors, by name."""
        for matrix in self.matrices:
            matrix.codec.unpack([packed[name] for name in matrix.tensors], matrix.part_of(weights))

    def pack(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One expert's packed tensors, by name; every codec must be a packer or plain."""
        packed: dict[str, torch.Tensor] = {}
        for matrix in self.matrices:
            part = matrix.part_of(weights)
            made = matrix.codec.pack(part) if isinstance(matrix.codec, Packer) else [part]
            packed |= dict(zip(matrix.tensors, made, strict=True))
        return packed


def matrices_as_published(model: Any, layer: MoELayer, told: Mapping[str, Any]) -> tuple[Matrix, ...] | None:
    """A layer's experts as in a checkpoint; None if the checkpoint does not pack them.

    Args:
        model: the model.
        layer: its MoE layer.
        told: quantization_config of the checkpoint's configuration.
    Raises:
        FinemoeError: finemoe cannot pack in the checkpoint's format.
    """
    found, num_rows = [], dict.fromkeys(layer.expert_parameters(), 0)
    for matrix, codec in expert_codecs(model, layer, told):
        if not isinstance(codec, Packer | Plain):
            raise FinemoeError(f"finemoe cannot pack experts as {codec.format}; omit quantization_config, or use expert_format")
        found.append(Matrix(matrix.parameter, num_rows[matrix.parameter], codec))
        num_rows[matrix.parameter] += matrix.shape[0]
    return None if all(isinstance(matrix.codec, Plain) for matrix in found) else tuple(found)


def packing_matrices(layer: MoELayer, expert_format: str) -> tuple[Matrix, ...]:
    """Every parameter of a layer's experts in one format; vectors such as biases stay unpacked."""
    is_transposed = bool(layer.experts.is_transposed)
    found = []
    for name, parameter in layer.expert_parameters().items():
        shape = tuple(parameter.shape[1:])
        is_matrix = len(shape) == 2
        codec = packer(expert_format, (shape[0], shape[1]), is_transposed) if is_matrix else Plain(shape, parameter.dtype)
        found.append(Matrix(name, 0, codec))
    return tuple(found)
