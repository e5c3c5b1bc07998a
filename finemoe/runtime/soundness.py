"""Finds faults in the tensors of a quantised checkpoint, some of which Transformers would silently load as weights."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import Mxfp4Dequantize

from finemoe.packing.fp8 import grid_of
from finemoe.runtime.blockwise import block_of
from finemoe.runtime.packed_parts import SCALE, is_packed_type, scheme_of
from finemoe.runtime.shards import Shards
from finemoe.runtime.tensor_group import Group

_ACTIVATION_SCALE = "activation_scale"
_AGAIN = "fetch it again, or check that it is this model's"
_INT32_BITS = 32


def packed_fault(groups: Iterable[Group], shards: Shards, targets: Mapping[str, torch.Tensor]) -> str | None:
    """The first fault, with its remedy; None if there is none.

    Args:
        groups: groups of the checkpoint's tensors.
        shards: the checkpoint's tensors.
        targets: the model's parameters and buffers by name.
    """
    faults = (fault for group in groups for fault in _faults(group, shards, targets[group.target]))
    return next(faults, None)


def _faults(group: Group, shards: Shards, target: torch.Tensor) -> Iterator[str]:
    if not group.dequantizes:
        yield from _taken_for_weights(group, shards, target)
        return
    operation = group.operations[0]
    if isinstance(operation, Fp8Dequantize):
        yield from _of_fp8(group, shards, block_of(operation))
    if isinstance(operation, Mxfp4Dequantize):
        yield from _of_mxfp4(group, shards)
    if group.is_stacked:
        yield from _unlike(group, shards)
        if isinstance(operation, CompressedTensorsDequantize):
            yield from _of_packed_integers(group, shards, scheme_of(operation))


def _taken_for_weights(group: Group, shards: Shards, target: torch.Tensor) -> Iterator[str]:
    if not is_packed_type(target.dtype):
        for names in group.sources.values():
            for name in names:
                if is_packed_type(shards.on_meta(name).dtype):
                    yield (
                        f"{_placed(name, shards)} is of type {shards.dtype_name(name)}, which is not a weight by itself, and "
                        f"config.json names no quantisation that unpacks it; {_AGAIN}"
                    )


def _unlike(group: Group, shards: Shards) -> Iterator[str]:
    """Experts of one layer that are packed in different ways, or that lack a tensor."""
    most = max(map(len, group.sources.values()))
    fullest = next(names for names in group.sources.values() if len(names) == most)
    for pattern, names in group.sources.items():
        if len(names) < most:
            lost = _first_lost(fullest, names)
            yield f"the checkpoint lacks the {pattern.rpartition('.')[2]} of {lost} (in {shards.file_of(lost)}); {_AGAIN}"
        first = shards.on_meta(names[0])
        for name in names:
            other = shards.on_meta(name)
            if (other.dtype, other.shape) != (first.dtype, first.shape):
                yield (
                    f"{_placed(name, shards)} is of type {shards.dtype_name(name)} and shape {tuple(other.shape)}, but "
                    f"{names[0]} is of type {shards.dtype_name(names[0])} and shape {tuple(first.shape)}; {_AGAIN}"
                )


def _of_fp8(group: Group, shards: Shards, block: tuple[int, int] | None) -> Iterator[str]:
    for pattern, names in group.sources.items():
        if pattern.endswith(_ACTIVATION_SCALE):
            yield (
                f"{_placed(names[0], shards)} is an activation scale, which is lost when weights are unpacked; use a "
                "checkpoint without static activation scales"
            )
        elif not pattern.endswith(SCALE):
            packed = [name for name in names if is_packed_type(shards.on_meta(name).dtype)]
            yield from _of_weights(packed, group.sources.get(pattern + SCALE, []), shards, block)


def _of_weights(weights: list[str], scales: list[str], shards: Shards, block: tuple[int, int] | None) -> Iterator[str]:
    """FP8 weights and their scales, each in the order of the checkpoint's experts."""
    if len(weights) > len(scales):
        lost = _first_lost(weights, scales)
        yield f"the checkpoint lacks the scales of {lost} (in {shards.file_of(lost)}); {_AGAIN}"
        return
    for weight, scale in zip(weights, scales, strict=False):
        shape, found = shards.shape(weight), shards.shape(scale)
        if shards.on_meta(weight).dtype != torch.float8_e4m3fn or torch.Size(found).numel() == 1:
            continue
        wanted = grid_of((shape[-2], shape[-1]), block) if block else None
        if block and found[-2:] != wanted:
            of_weight = f"{weight} of shape {shape} has {wanted} blocks of {block}"
            yield f"{_placed(scale, shards)} has shape {found}, but {of_weight}; {_AGAIN}"
        if not block and (len(found) < 2 or shape[-2] % found[-2] or shape[-1] % found[-1]):
            yield f"{_placed(scale, shards)} has shape {found}, which does not divide {weight} of shape {shape}; {_AGAIN}"


def _of_mxfp4(group: Group, shards: Shards) -> Iterator[str]:
    for names in group.sources.values():
        for name in names:
            if shards.on_meta(name).dtype != torch.uint8:
                yield f"{_placed(name, shards)} is of type {shards.dtype_name(name)}, but MXFP4 consists of bytes (U8); {_AGAIN}"


def _of_packed_integers(group: Group, shards: Shards, scheme: Any) -> Iterator[str]:
    """Integers packed several to an int32: the shape they should have and the shape they have."""
    bits, group_size = scheme.weights.num_bits, scheme.weights.group_size
    for pattern, names in group.sources.items():
        if not pattern.endswith("weight_packed"):
            continue
        shapes = group.sources.get(pattern.replace("weight_packed", "weight_shape"), [])
        scales = group.sources.get(pattern.replace("weight_packed", "weight_scale"), [])
        for packed, shape, scale in zip(names, shapes, scales, strict=False):
            rows, columns = (int(size) for size in shards.read(shape))
            wanted = rows, -(-columns * bits // _INT32_BITS)
            groups = rows, -(-columns // group_size) if group_size and group_size > 0 else 1
            if shards.on_meta(packed).dtype == torch.int32 and shards.shape(packed) != wanted:
                yield (
                    f"{_placed(packed, shards)} has shape {shards.shape(packed)}, but {rows} x {columns} weights of {bits} "
                    f"bits, as given by {shape}, take {wanted}; {_AGAIN}"
                )
            if shards.on_meta(packed).dtype == torch.int32 and shards.shape(scale) != groups:
                yield f"{_placed(scale, shards)} has shape {shards.shape(scale)}, but {shape} requires {groups} scales; {_AGAIN}"


def _first_lost(names: list[str], others: list[str]) -> str:
    """The first of `names` whose stem no name in `others` has."""
    have = {_stem(name) for name in others}
    return next((name for name in names if _stem(name) not in have), names[0])


def _stem(name: str) -> str:
    """The part of a name that a weight shares with its scales."""
    return name.rpartition(".")[0]


def _placed(name: str, shards: Shards) -> str:
    return f"{name} ({shards.file_of(name)})"
