"""The tensors of a matrix in compressed-tensors: integers packed into int32, or FP8, with scales in bfloat16."""

from collections.abc import Mapping
from typing import Any

import torch

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Codec, PackedTensor
from finemoe.packing.counted import Counted
from finemoe.packing.fp8 import Fp8, grid_of
from finemoe.packing.int_words import BITS, WORD_BITS, IntWords

_METHOD = "compressed-tensors"
_SCALE = torch.bfloat16  # type of the scales


def compressed(told: Mapping[str, Any], shape: tuple[int, int]) -> Codec:
    """The codec of a matrix of shape (rows, columns) as stored in a checkpoint.

    Raises:
        FinemoeError: Transformers does not unpack experts in this format.
    """
    scheme = experts_scheme(told)
    weights = scheme["weights"]
    bits, kind = int(weights.get("num_bits", 8)), str(weights.get("type", "int"))
    packing = scheme.get("format") or told.get("format")
    if packing == "pack-quantized" and kind == "int":
        return _integers(weights, shape, bits)
    if packing in ("float-quantized", "naive-quantized") and (kind, bits) == ("float", 8):
        return _bytes(weights, shape)
    raise FinemoeError(f"Transformers does not unpack experts quantised by {_METHOD} as {packing} ({bits}-bit {kind})")


def _integers(weights: Mapping[str, Any], shape: tuple[int, int], bits: int) -> Codec:
    scales, is_symmetric = _scales(weights, shape), weights.get("symmetric", True)
    if bits in BITS and is_symmetric and scales[0] == shape[0]:
        return IntWords(shape, bits, scales[1], _SCALE)
    tensors = [PackedTensor("weight_packed", (shape[0], _words(shape[1], bits)), torch.int32)]
    tensors += [PackedTensor("weight_scale", scales, _SCALE), PackedTensor("weight_shape", (2,), torch.int64)]
    if not is_symmetric:
        tensors.append(PackedTensor("weight_zero_point", (_words(shape[0], bits), scales[1]), torch.int32))
    return Counted(shape, tuple(tensors), f"{_METHOD} int{bits}")


def _bytes(weights: Mapping[str, Any], shape: tuple[int, int]) -> Codec:
    scales = _scales(weights, shape)
    if scales in ((1, 1), (shape[0], 1)):
        return Fp8(shape, (shape[0] // scales[0], shape[1]), scales, _SCALE, format=f"{_METHOD} fp8")
    tensors = PackedTensor("weight", shape, torch.float8_e4m3fn), PackedTensor("weight_scale", scales, _SCALE)
    return Counted(shape, tensors, f"{_METHOD} fp8")


def experts_scheme(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group of a configuration that applies to experts, chosen as in Transformers: one that names them, else one that
    targets a class of modules, else the first.

    Raises:
        FinemoeError: there is no group with weights.
    """
    groups = [group for group in (told.get("config_groups") or {}).values() if group.get("weights")]
    if not groups:
        raise FinemoeError(f"the configuration is quantised by {_METHOD}, but describes no group of weights")
    naming = [group for group in groups if names_experts(group)]
    by_class = [group for group in groups if any(not target.startswith("re:") for target in group.get("targets", ()))]
    found: Mapping[str, Any] = (naming or by_class or groups)[0]
    return found


def names_experts(group: Mapping[str, Any]) -> bool:
    """Whether a group of weights targets the experts by name, by the same test as in Transformers."""
    return any(target.startswith("re:") and "experts" in target for target in group.get("targets", ()))


def _scales(weights: Mapping[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
    """Shape of a matrix's scales: one per group of a row ("group"), block, row ("channel"), or a single one ("tensor")."""
    strategy = str(weights.get("strategy") or ("group" if weights.get("group_size") else "tensor"))
    if strategy == "group":
        return shape[0], -(-shape[1] // int(weights["group_size"]))
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return grid_of(shape, (int(rows), int(columns)))
    return (shape[0], 1) if strategy == "channel" else (1, 1)


def _words(count: int, bits: int) -> int:
    """Number of 32-bit words that hold `count` numbers."""
    return -(-count * bits // WORD_BITS)
