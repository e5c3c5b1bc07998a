"""What is wrong with a quantised checkpoint's tensors, in words: Transformers would take some of it for weights, in silence."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from finemoe.packing.fp8 import grid_of
from finemoe.runtime.blockwise import block_of
from finemoe.runtime.packed_parts import SCALE, is_packed_type
from finemoe.runtime.shards import Shards
from finemoe.runtime.tensor_group import Group

_ACTIVATION_SCALE = "activation_scale"


def packed_fault(groups: Iterable[Group], shards: Shards, targets: Mapping[str, torch.Tensor]) -> str | None:
    """The first fault found; None if there is none.

    Args:
        groups: of the checkpoint's tensors; targets: the model's parameters and buffers by name.
    """
    faults = (fault for group in groups for fault in _faults(group, shards, targets[group.target]))
    return next(faults, None)


def _faults(group: Group, shards: Shards, target: torch.Tensor) -> Iterator[str]:
    if not group.dequantizes:
        yield from _taken_for_weights(group, shards, target)
    elif isinstance(group.operations[0], Fp8Dequantize):
        yield from _of_fp8(group, shards, block_of(group.operations[0]))


def _taken_for_weights(group: Group, shards: Shards, target: torch.Tensor) -> Iterator[str]:
    if not is_packed_type(target.dtype):
        for names in group.sources.values():
            for name in names:
                if is_packed_type(shards.on_meta(name).dtype):
                    yield (
                        f"{name} ({shards.file_of(name)}) is of type {shards.dtype_name(name)}, which is no weight by itself, "
                        "and config.json names no quantisation that unpacks it"
                    )


def _of_fp8(group: Group, shards: Shards, block: tuple[int, int] | None) -> Iterator[str]:
    for pattern, names in group.sources.items():
        if pattern.endswith(_ACTIVATION_SCALE):
            yield (
                f"{names[0]} ({shards.file_of(names[0])}) is an activation's scale, which is lost where weights are unpacked; "
                "use a checkpoint without static activation scales"
            )
        elif not pattern.endswith(SCALE):
            packed = [name for name in names if is_packed_type(shards.on_meta(name).dtype)]
            yield from _of_weights(packed, group.sources.get(pattern + SCALE, []), shards, block)


def _of_weights(weights: list[str], scales: list[str], shards: Shards, block: tuple[int, int] | None) -> Iterator[str]:
    """Weights and their scales, each in the order of the checkpoint's experts."""
    if len(weights) > len(scales):
        have = {_stem(name) for name in scales}
        lost = next((name for name in weights if _stem(name) not in have), weights[0])
        yield f"the checkpoint lacks the scales of {lost} ({shards.file_of(lost)})"
        return
    for weight, scale in zip(weights, scales, strict=False):
        shape, found = shards.shape(weight), shards.shape(scale)
        wanted = grid_of((shape[-2], shape[-1]), block) if block else None
        if shards.on_meta(weight).dtype == torch.float8_e4m3fn and torch.Size(found).numel() > 1 and found[-2:] != wanted:
            yield (
                f"{scale} ({shards.file_of(scale)}) has shape {found}, but {weight} of shape {shape} "
                + (f"has {wanted} blocks of {block}" if block else "has one scale, as config.json names no blocks")
            )


def _stem(name: str) -> str:
    """What a weight and its scales share of their names."""
    return name.rpartition(".")[0]
