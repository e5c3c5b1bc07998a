"""Sizes of packed experts from a model's configuration alone: the bytes of a record in the runtime's layout.

A record is what one expert takes in host memory, on disk and over the link; a slot holds the largest record.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.models.expert_matrices import ExpertMatrix, expert_matrices
from finemoe.models.layers import MoELayer
from finemoe.packing.codec import Codec, PackedTensor, Plain
from finemoe.packing.gguf_mixes import codec_in_mix, require_mix
from finemoe.packing.methods import codec_of, method_of
from finemoe.packing.record import record_bytes

PLAIN = "bf16"  # format of experts that are not packed


@dataclass(frozen=True)
class ExpertRecord:
    """One expert of a layer.

    Attributes:
        format: its name. tensors: contents of a record, without an axis of experts. nbytes: size of the record.
        count: number of experts of the layer. unpacked_bytes: size of an expert in bf16.
    """

    format: str
    tensors: tuple[PackedTensor, ...]
    nbytes: int
    count: int
    unpacked_bytes: int


def expert_records(
    model: Any, layers: Sequence[MoELayer], told: Mapping[str, Any] | None = None, mix: str | None = None
) -> list[ExpertRecord]:
    """One expert of every layer.

    Args:
        model: on the meta device, in bf16; layers: its MoE layers. told: the configuration's quantisation_config; None if it has
            none. mix: name of a GGUF mix; overrides the configuration's quantisation.
    Raises:
        FinemoeError: the sizes cannot be determined.
    """
    if mix is not None:
        require_mix(mix)
    return [_record(model, layer, told, mix) for layer in layers]


def expert_codecs(
    model: Any, layer: MoELayer, told: Mapping[str, Any] | None = None, mix: str | None = None
) -> list[tuple[ExpertMatrix, Codec]]:
    """Every matrix and vector of a layer's experts with its codec; arguments and errors as in `expert_records`."""
    return [(matrix, _codec(model, layer, matrix, told, mix)) for matrix in expert_matrices(model, layer)]


def _record(model: Any, layer: MoELayer, told: Mapping[str, Any] | None, mix: str | None) -> ExpertRecord:
    codecs = [codec for _, codec in expert_codecs(model, layer, told, mix)]
    tensors = tuple(tensor for codec in codecs for tensor in codec.tensors)
    unpacked = sum(parameter[0].numel() * parameter.element_size() for parameter in layer.expert_parameters().values())
    packed = [codec.format for codec in codecs if not isinstance(codec, Plain)]
    if not packed:  # unpacked experts have the layout in which the layer computes
        return ExpertRecord(PLAIN, tensors, unpacked, layer.num_experts, unpacked)
    name = packed[0] if mix is None else f"gguf {mix}"
    return ExpertRecord(name, tensors, record_bytes(tensors), layer.num_experts, unpacked)


def _codec(model: Any, layer: MoELayer, matrix: ExpertMatrix, told: Mapping[str, Any] | None, mix: str | None) -> Codec:
    import torch

    if len(matrix.shape) != 2 or (mix is None and (told is None or _is_left_out(told, layer, matrix))):
        return Plain(matrix.shape, torch.bfloat16)
    rows, columns = matrix.shape
    if mix is None:
        assert told is not None
        return codec_of(told, (rows, columns), matrix.is_transposed)
    if matrix.is_transposed:
        raise FinemoeError(f"{model.config.model_type}: no GGUF mix is known for experts whose matrices are transposed")
    block, num_blocks = _block_number(layer), model.config.get_text_config().num_hidden_layers
    return codec_in_mix(mix, matrix.is_down, block, num_blocks, (rows, columns))


def _block_number(layer: MoELayer) -> int:
    """The number of the decoder layer that contains a MoE layer, including dense layers."""
    numbers = [int(part) for part in layer.name.split(".") if part.isdigit()]
    return numbers[0] if numbers else layer.index


def _is_left_out(told: Mapping[str, Any], layer: MoELayer, matrix: ExpertMatrix) -> bool:
    """Whether a configuration excludes these weights from quantisation."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    if method_of(told) == "compressed-tensors":
        module = f"{layer.name}.0.{matrix.name}"
        return any(_matches(pattern, module) for pattern in told.get("ignore") or ())
    patterns = told.get("modules_to_not_convert") or told.get("ignored_layers")
    return not should_convert_module(layer.name, patterns)


def _matches(pattern: str, module: str) -> bool:
    """Match as compressed-tensors does: a regular expression after "re:", otherwise a name."""
    return re.match(pattern.removeprefix("re:"), module) is not None if pattern.startswith("re:") else pattern == module
