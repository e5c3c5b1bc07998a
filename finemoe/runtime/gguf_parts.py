"""Maps the tensors of a GGUF file to parts of an expert's parameters (llama.cpp's `ffn_{gate,up,down}_exps`)."""

import re
from dataclasses import dataclass
from importlib import import_module

import torch

from finemoe.errors import FinemoeError
from finemoe.models.layers import MoELayer
from finemoe.packing.codec import Codec, Plain
from finemoe.packing.gguf import Gguf, block_of
from finemoe.runtime.gguf_file import GgufFile, GgufTensor
from finemoe.runtime.packing import Matrix

_UP, _DOWN = "gate_up_proj", "down_proj"  # parameters of experts that a file can hold
_ONE_EACH = "blk.{bid}.ffn_{part}.{expert}.weight"  # names in files from before experts were stacked


@dataclass(frozen=True)
class GgufPart:
    """A matrix of every expert of a layer, and its tensors.

    Attributes:
        matrix: the matrix of each expert.
        tensors: one tensor that stacks all experts, or one per expert.
    """

    matrix: Matrix
    tensors: tuple[GgufTensor, ...]

    def packed(self, file: GgufFile, expert: int) -> tuple[str, torch.Tensor]:
        """One expert's packed matrix, with its name in a record."""
        (name,) = self.matrix.tensors
        if len(self.tensors) == 1:
            return name, file.read(self.tensors[0])[expert]
        return name, file.read(self.tensors[expert])


def parts_of(file: GgufFile, layer: MoELayer, arithmetic: torch.dtype) -> list[GgufPart]:
    """The parts of a layer's experts, in the order of its parameters and of their rows.

    Args:
        file: the file.
        layer: the MoE layer.
        arithmetic: type in which blocks are unpacked.
    Raises:
        FinemoeError: the layer's experts hold other parameters, or the file lacks tensors or has them in other shapes.
    """
    parameters = dict(layer.experts.named_parameters(recurse=False))
    if set(parameters) != {_UP, _DOWN} or layer.experts.is_transposed or layer.experts.has_bias:
        raise FinemoeError(
            f"{file.path}: experts of {file.architecture} are more than gate, up and down matrices, which finemoe does not "
            "read from GGUF files; use the model's safetensors checkpoint"
        )
    hidden, width = parameters[_DOWN].shape[1:]
    wanted = ((_UP, "gate", 0, (width, hidden)), (_UP, "up", width, (width, hidden)), (_DOWN, "down", 0, (hidden, width)))
    return [_part(file, layer, *one, arithmetic) for one in wanted]


def tensors_of(file: GgufFile, layer: MoELayer) -> list[GgufTensor]:
    """All tensors of a layer's experts; raises as `parts_of`."""
    return [tensor for part in parts_of(file, layer, torch.float32) for tensor in part.tensors]


def _part(
    file: GgufFile,
    layer: MoELayer,
    parameter: str,
    part: str,
    first_row: int,
    shape: tuple[int, int],
    arithmetic: torch.dtype,
) -> GgufPart:
    tensors = _tensors(file, layer, part)
    wanted = (layer.num_experts, *shape) if len(tensors) == 1 else shape
    for tensor in tensors:
        if tensor.shape != wanted:
            raise FinemoeError(f"{file.path}: {tensor.name} has shape {tensor.shape}, not {wanted}; fetch the file again")
        if tensor.type_id != tensors[0].type_id:
            raise FinemoeError(
                f"{file.path}: {tensor.name} is {tensor.type_name}, but {tensors[0].name} is {tensors[0].type_name}; use a file "
                "whose experts have one type in each layer"
            )
    return GgufPart(Matrix(parameter, first_row, _codec(file, tensors[0], shape, arithmetic)), tensors)


def _tensors(file: GgufFile, layer: MoELayer, part: str) -> tuple[GgufTensor, ...]:
    """The tensor of all experts, or one per expert."""
    package = import_module("gguf")
    block = _block_of(layer)
    stacked = package.TENSOR_NAMES[package.MODEL_TENSOR[f"FFN_{part.upper()}_EXP"]].format(bid=block) + ".weight"
    if stacked in file.tensors:
        return (file.tensors[stacked],)
    apart = [_ONE_EACH.format(bid=block, part=part, expert=expert) for expert in range(layer.num_experts)]
    lost = next((name for name in apart if name not in file.tensors), None)
    if lost is None:
        return tuple(file.tensors[name] for name in apart)
    name = lost if apart[0] in file.tensors else stacked
    raise FinemoeError(f"{file.path}: the file lacks {name}; fetch it again, or check that it stores experts in a known way")


def _block_of(layer: MoELayer) -> int:
    """The number of the decoder layer that contains a layer of experts."""
    found = re.search(r"\.layers\.(\d+)\.", layer.name)
    assert found is not None, layer.name
    return int(found.group(1))


def _codec(file: GgufFile, tensor: GgufTensor, shape: tuple[int, int], arithmetic: torch.dtype) -> Codec:
    if tensor.dtype is not None:
        return Plain(shape, tensor.dtype)
    if block_of(tensor.type_id) is None:
        raise FinemoeError(
            f"{file.path}: {tensor.name} is {tensor.type_name}, which finemoe cannot unpack in experts; use a file of "
            "another type, such as Q4_K_M or Q8_0"
        )
    return Gguf.of(shape, tensor.type_id, arithmetic)
