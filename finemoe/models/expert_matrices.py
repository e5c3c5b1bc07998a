"""Which matrices of a checkpoint make up an expert's parameters: gate and up are one parameter, but mostly two matrices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finemoe.models.layers import MoELayer


@dataclass(frozen=True)
class ExpertMatrix:
    """A matrix or vector of an expert as stored in a checkpoint.

    Attributes:
        parameter: the parameter that it is, or is part of; parts are concatenated row by row.
        name: name of its module in the checkpoint, e.g. "gate_proj", if each expert has one, otherwise of the parameter.
        shape: without an axis of experts. is_transposed: whether its first axis is the layer's input.
        is_down: whether it maps back to the hidden size.
    """

    parameter: str
    name: str
    shape: tuple[int, ...]
    is_transposed: bool
    is_down: bool


def expert_matrices(model: Any, layer: MoELayer) -> list[ExpertMatrix]:
    """The parts of one of a layer's experts, from Transformers' own conversions for the family's checkpoints."""
    is_transposed = bool(layer.experts.is_transposed)
    found = []
    for parameter, weight in layer.expert_parameters().items():
        shape, is_down = tuple(weight.shape[1:]), "down" in parameter
        names = _stacked_below(model, f"{layer.name}.{parameter}") if len(shape) == 2 else []
        if not names:
            found.append(ExpertMatrix(parameter, parameter, shape, is_transposed, is_down))
        found += [ExpertMatrix(parameter, name, (shape[0] // len(names), shape[1]), is_transposed, is_down) for name in names]
    return found


def _stacked_below(model: Any, target: str) -> list[str]:
    """Names of the modules whose weights are stacked into a parameter, expert by expert; none if checkpoints store it fused."""
    for sources, end in _conversions(model):
        if target.endswith(end):
            return [source.split(".")[-2] for source in sources]
    return []


def _conversions(model: Any) -> Iterator[tuple[list[str], str]]:
    """Patterns of weights that are stacked, and the suffix of the name of the result."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    for conversion in get_model_conversion_mapping(model):
        if not isinstance(conversion, WeightConverter) or len(conversion.target_patterns) != 1:
            continue
        kinds = [type(operation) for operation in conversion.operations]
        sources = [source for source in conversion.source_patterns if source.endswith(".weight")]
        if kinds[:1] == [MergeModulelist] and set(kinds[1:]) <= {Concatenate} and sources:
            yield sources, conversion.target_patterns[0]
