"""Maps a checkpoint's packed tensors to parts of parameters, by reading Transformers' conversions as codecs.

For a quantised checkpoint, Transformers puts a dequantising operation before the other operations of a conversion. If those
only stack experts and rows, a codec of `finemoe.packing` does the same with less work; otherwise the conversion itself unpacks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import Concatenate, MergeModulelist
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize, get_experts_scheme
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import Mxfp4Dequantize

from finemoe.packing.codec import Codec, PackedTensor, Plain
from finemoe.packing.converted import Converted
from finemoe.packing.fp8 import Fp8
from finemoe.packing.int_words import BITS, IntWords
from finemoe.packing.mxfp4 import Mxfp4
from finemoe.packing.transposed import Transposed
from finemoe.runtime.packing import Matrix
from finemoe.runtime.tensor_group import Group

_WORDS = "weight_packed"
SCALE = "_scale_inv"  # suffix of the name of a weight's scales
_FP8 = torch.float8_e4m3fn
Convert = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class PackedPart:
    """A matrix of every expert of a layer, and the sources of its tensors.

    Attributes:
        matrix: the matrix of each expert.
        patterns: patterns of the group's sources, in the order of the codec's tensors.
    """

    matrix: Matrix
    patterns: tuple[str, ...]


def packed_parts(
    group: Group, parameter: str, shape: tuple[int, ...], spec: Callable[[str], PackedTensor], convert: Convert, method: str
) -> list[PackedPart]:
    """The parts of one parameter.

    Args:
        group: packed tensors that can be split by expert.
        parameter: name of the parameter within the experts' module.
        shape: shape of one expert's weight.
        spec: gives one expert's tensor of a pattern.
        convert: the conversion itself, for one expert's tensors in the order of `present`.
        method: name of the quantisation.
    """
    following = group.operations[1:]
    if isinstance(group.operations[0], Fp8Dequantize) and _stacks_rows(following):
        found = _of_fp8(group, parameter, spec)
        if found is not None:
            return found
    if isinstance(group.operations[0], CompressedTensorsDequantize) and _stacks_rows(following):
        found = _of_int_words(group, parameter, spec, shape[-1]) or _of_scaled_bytes(group, parameter, spec)
        if found is not None:
            return found
    if isinstance(group.operations[0], Mxfp4Dequantize) and not following:
        return [_part(parameter, 0, Transposed(Mxfp4((shape[1], shape[0]))), tuple(group.transform.source_patterns))]
    patterns = present(group)
    packed = tuple(PackedTensor(pattern, spec(pattern).shape, spec(pattern).dtype) for pattern in patterns)
    return [_part(parameter, 0, Converted(shape, packed, convert, method), patterns)]


def _stacks_rows(operations: Sequence[Any]) -> bool:
    """Whether the operations only stack experts, and possibly the rows of several matrices."""
    kinds = [type(operation) for operation in operations]
    return kinds == [MergeModulelist] or (kinds == [MergeModulelist, Concatenate] and operations[1].dim == 1)


def present(group: Group) -> tuple[str, ...]:
    """The patterns for which a checkpoint has tensors, in the conversion's order."""
    return tuple(pattern for pattern in group.transform.source_patterns if pattern in group.sources)


def _of_fp8(group: Group, parameter: str, spec: Callable[[str], PackedTensor]) -> list[PackedPart] | None:
    parts, first_row = [], 0
    block = getattr(group.operations[0].hf_quantizer.quantization_config, "weight_block_size", None)
    for pattern in present(group):
        if pattern.endswith(SCALE):
            continue
        weight = spec(pattern)
        if weight.dtype != _FP8 or pattern + SCALE not in group.sources:
            return None
        scale = spec(pattern + SCALE)
        spread = _pair(block) if block else spread_of(weight.shape, scale.shape)
        codec = Fp8(_pair(weight.shape), spread, scale.shape, scale.dtype)
        parts.append(_part(parameter, first_row, codec, (pattern, pattern + SCALE)))
        first_row += weight.shape[0]
    return parts


def plain_part(parameter: str, shape: tuple[int, ...], tensor: PackedTensor) -> PackedPart:
    """A parameter that the checkpoint holds unpacked."""
    return _part(parameter, 0, Plain(shape, tensor.dtype), (tensor.name,))


def is_packed_type(dtype: torch.dtype) -> bool:
    """Whether values of a type are not weights by themselves."""
    return not dtype.is_floating_point or dtype.itemsize < 2


def _of_int_words(group: Group, parameter: str, spec: Callable[[str], PackedTensor], num_columns: int) -> list[PackedPart] | None:
    scheme = scheme_of(group.operations[0]).weights
    parts: list[PackedPart] = []
    first_row = 0
    for pattern in present(group):
        if not pattern.endswith(_WORDS):
            continue
        patterns = pattern, pattern.replace(_WORDS, "weight_scale"), pattern.replace(_WORDS, "weight_shape")
        if scheme.num_bits not in BITS or scheme.type != "int" or not all(one in group.sources for one in patterns):
            return None
        words, scale = spec(pattern), spec(patterns[1])
        codec = IntWords((words.shape[0], num_columns), scheme.num_bits, scale.shape[-1], scale.dtype)
        if words.dtype != torch.int32 or num_columns % scale.shape[-1] or codec.tensors[0].shape != words.shape:
            return None
        parts.append(_part(parameter, first_row, codec, patterns))
        first_row += words.shape[0]
    return parts or None


def scheme_of(operation: CompressedTensorsDequantize) -> Any:
    """The scheme by which compressed-tensors packed what an operation of Transformers unpacks."""
    return operation.scheme or get_experts_scheme(operation.hf_quantizer.compressor.quantization_config)


def _part(parameter: str, first_row: int, codec: Codec, patterns: tuple[str, ...]) -> PackedPart:
    return PackedPart(Matrix(parameter, first_row, codec), patterns)


def _of_scaled_bytes(group: Group, parameter: str, spec: Callable[[str], PackedTensor]) -> list[PackedPart] | None:
    """FP8 of compressed-tensors, with a scale per row or per matrix."""
    parts, first_row = [], 0
    for pattern in present(group):
        if not pattern.endswith(".weight"):
            continue
        weight, scales = spec(pattern), pattern + "_scale"
        if weight.dtype != _FP8 or scales not in group.sources:
            return None
        scale = spec(scales)
        if torch.Size(scale.shape).numel() > 1 and scale.shape != (weight.shape[0], 1):
            return None
        spread = spread_of(weight.shape, scale.shape)
        codec = Fp8(_pair(weight.shape), spread, scale.shape, scale.dtype, format="compressed-tensors fp8")
        parts.append(_part(parameter, first_row, codec, (pattern, scales)))
        first_row += weight.shape[0]
    return parts or None


def spread_of(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns covered by one scale, if scales cover a matrix evenly."""
    rows, columns = _pair(shape)
    return (rows, columns) if torch.Size(scales).numel() == 1 else (rows // scales[-2], columns // scales[-1])


def _pair(values: Any) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)
