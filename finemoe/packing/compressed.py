"""What compressed-tensors keeps of a matrix: integers packed into int32, or FP8, and scales in bfloat16."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from finemoe.errors import FinemoeError
from finemoe.packing.codec import PackedTensor
from finemoe.packing.converted import Converted
from finemoe.packing.fp8 import grid_of

_METHOD = "compressed-tensors"
_WORD_BITS = 32  # of the integers that hold packed ones


def compressed(told: Mapping[str, Any], shape: tuple[int, int]) -> Converted:
    """A matrix of that shape (rows, columns) as it lies in a checkpoint; only a checkpoint's own conversion unpacks it.

    Raises:
        FinemoeError: the format is one that Transformers does not unpack in experts.
    """
    scheme = experts_scheme(told)
    weights = scheme["weights"]
    bits, kind = int(weights.get("num_bits", 8)), str(weights.get("type", "int"))
    packing = scheme.get("format") or told.get("format")
    if packing == "pack-quantized" and kind == "int":
        tensors = _packed_integers(weights, shape, bits)
    elif packing in ("float-quantized", "naive-quantized") and (kind, bits) == ("float", 8):
        tensors = (PackedTensor("weight", shape, torch.float8_e4m3fn), _scale(weights, shape))
    else:
        raise FinemoeError(f"experts quantised by {_METHOD} as {packing} ({bits}-bit {kind}), which Transformers does not unpack")
    return Converted(shape, tensors, _needs_checkpoint, f"{_METHOD} {'int' if kind == 'int' else 'fp'}{bits}")


def experts_scheme(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group of a configuration that is meant for experts, chosen as Transformers does: one that names them, else one of a
    class of modules, else the first.

    Raises:
        FinemoeError: there is none.
    """
    groups = [group for group in (told.get("config_groups") or {}).values() if group.get("weights")]
    if not groups:
        raise FinemoeError(f"the configuration is quantised by {_METHOD}, but says of no weights how")
    naming = [group for group in groups if names_experts(group)]
    by_class = [group for group in groups if any(not target.startswith("re:") for target in group.get("targets", ()))]
    found: Mapping[str, Any] = (naming or by_class or groups)[0]
    return found


def names_experts(group: Mapping[str, Any]) -> bool:
    """Whether a group of weights is told from the others as that of the experts, as Transformers tells it."""
    return any(target.startswith("re:") and "experts" in target for target in group.get("targets", ()))


def _packed_integers(weights: Mapping[str, Any], shape: tuple[int, int], bits: int) -> tuple[PackedTensor, ...]:
    scale = _scale(weights, shape)
    packed = PackedTensor("weight_packed", (shape[0], _words(shape[1], bits)), torch.int32)
    tensors = (packed, scale, PackedTensor("weight_shape", (2,), torch.int64))
    if weights.get("symmetric", True):
        return tensors
    return (*tensors, PackedTensor("weight_zero_point", (_words(shape[0], bits), scale.shape[1]), torch.int32))


def _scale(weights: Mapping[str, Any], shape: tuple[int, int]) -> PackedTensor:
    strategy = str(weights.get("strategy") or ("group" if weights.get("group_size") else "tensor"))
    if strategy == "group":
        scales: tuple[int, ...] = (shape[0], -(-shape[1] // int(weights["group_size"])))
    elif strategy == "block":
        rows, columns = weights["block_structure"]
        scales = grid_of(shape, (int(rows), int(columns)))
    else:
        scales = (shape[0], 1) if strategy == "channel" else (1, 1)
    return PackedTensor("weight_scale", scales, torch.bfloat16)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // _WORD_BITS)


def _needs_checkpoint(packed: Sequence[torch.Tensor]) -> NoReturn:
    raise NotImplementedError("only the conversion of a checkpoint unpacks compressed tensors")
