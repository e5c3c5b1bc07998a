"""The formats into which `expert_format` packs experts while a bf16, fp16 or fp32 checkpoint is loaded. All are lossy."""

from collections.abc import Callable

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Packer
from finemoe.packing.fp8 import Fp8
from finemoe.packing.int8 import Int8
from finemoe.packing.mxfp4 import Mxfp4
from finemoe.packing.transposed import Transposed

_PACKERS: dict[str, Callable[[tuple[int, int]], Packer]] = {"fp8": Fp8.of, "mxfp4": Mxfp4, "int8": Int8}


def require_format(name: str) -> None:
    """Refuse an unknown format.

    Raises:
        FinemoeError: there is no format of this name.
    """
    if name not in _PACKERS:
        raise FinemoeError(f"expert_format is {name!r}; use {', '.join(map(repr, _PACKERS))}, or omit it to stay exact")


def packer(name: str, shape: tuple[int, int], is_transposed: bool) -> Packer:
    """The packer of a matrix of a shape. If `is_transposed`, the first axis is the layer's input, and blocks run along it."""
    rows, columns = shape
    return Transposed(_PACKERS[name]((columns, rows))) if is_transposed else _PACKERS[name](shape)
