"""The formats that experts can be packed into while a checkpoint in bf16, fp16 or fp32 is loaded (`expert_format`): all lossy."""

from collections.abc import Callable

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Packer
from finemoe.packing.fp8 import Fp8
from finemoe.packing.int8 import Int8
from finemoe.packing.mxfp4 import Mxfp4
from finemoe.packing.transposed import Transposed

_PACKERS: dict[str, Callable[[tuple[int, int]], Packer]] = {"fp8": Fp8.of, "mxfp4": Mxfp4, "int8": Int8}


def require_format(name: str) -> None:
    """Refuse the name of a format that there is not.

    Raises:
        FinemoeError: it is unknown.
    """
    if name not in _PACKERS:
        raise FinemoeError(f"expert_format is {name!r}; write {', '.join(map(repr, _PACKERS))}, or leave it out to stay exact")


def packer(name: str, shape: tuple[int, int], is_transposed: bool) -> Packer:
    """What packs a matrix of a shape; is_transposed: its first axis is the layer's input, along which blocks lie."""
    rows, columns = shape
    return Transposed(_PACKERS[name]((columns, rows))) if is_transposed else _PACKERS[name](shape)
