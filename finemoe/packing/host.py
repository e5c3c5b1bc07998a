"""Compiled unpacking on the CPU: where torch takes a dozen passes over a matrix, one is enough. The bits are torch's.

Results are float32 or, as whole numbers, bfloat16; rounded once, to the nearest, ties to even.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from finemoe.compiling import IS_COMPILED, njit

_BLOCK = 32  # values that share a power of two
_NOT_A_NUMBER = np.uint16(0x7FC0)


def unpacks_here(out: torch.Tensor) -> bool:
    """Whether these functions can write a result."""
    return IS_COMPILED and out.device.type == "cpu" and out.dtype in (torch.float32, torch.bfloat16)


def on_arrays(unpack: Callable[..., None], packed: Sequence[torch.Tensor], *more: Any, out: torch.Tensor) -> None:
    """Call one of them with tensors' memory; packed: contiguous; more: between them and `out`."""
    unpack(*(one.numpy() for one in packed), *more, (out if out.dtype == torch.float32 else out.view(torch.uint16)).numpy())


@njit(cache=True, nogil=True, inline="always")
def _bits(value):  # type: ignore[no-untyped-def]
    """A float32's, uint32."""
    return np.float32(value).view(np.uint32)


@njit(cache=True, nogil=True, inline="always")
def _bfloat16(value):  # type: ignore[no-untyped-def]
    """The nearest bfloat16's bits."""
    bits = _bits(value)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))
    return rounded if value == value else _NOT_A_NUMBER  # only what is no number differs from itself


@njit(cache=True, nogil=True, inline="always")
def _e4m3(code):  # type: ignore[no-untyped-def]
    """The value of a byte."""
    size = np.uint32(code & np.uint8(0x7F))
    normal = np.uint32(np.uint32(size << np.uint32(20)) + np.uint32(120 << 23)).view(np.float32)
    value = np.float32(size) * np.float32(2.0**-9) if size < np.uint32(8) else normal
    value = np.float32(np.nan) if size == np.uint32(0x7F) else value
    sign = np.uint32(np.uint32(code & np.uint8(0x80)) << np.uint32(24))
    return np.uint32(_bits(value) | sign).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def unpack_fp8(codes, scales, block_rows, block_columns, out):  # type: ignore[no-untyped-def]
    """out[r, c] = value of codes[r, c] times scales[r // block_rows, c // block_columns].

    codes [rows, columns] uint8; scales float32; out [rows, columns] float32, or uint16 for bfloat16.
    """
    rows, columns = codes.shape
    for r in range(rows):
        for block in range(scales.shape[1]):
            scale, begin = scales[r // block_rows, block], block * block_columns
            end = min(begin + block_columns, columns)
            row, into = codes[r, begin:end], out[r, begin:end]
            if out.itemsize == 2:
                for c in range(end - begin):
                    into[c] = _bfloat16(_e4m3(row[c]) * scale)
            else:
                for c in range(end - begin):
                    into[c] = _e4m3(row[c]) * scale


@njit(cache=True, nogil=True, inline="always")
def _twice_e2m1(code):  # type: ignore[no-untyped-def]
    """Twice the value of a nibble."""
    size = np.uint32(code & np.uint8(7))
    normal = np.uint32(np.uint32(size << np.uint32(22)) + np.uint32(127 << 23)).view(np.float32)
    value = np.float32(size) if size < np.uint32(2) else normal
    sign = np.uint32(np.uint32(code & np.uint8(8)) << np.uint32(28))
    return np.uint32(_bits(value) | sign).view(np.float32)


@njit(cache=True, nogil=True, inline="always")
def _half_power(exponent):  # type: ignore[no-untyped-def]
    """2^(exponent - 128), subnormal at 0 and 1: half of what is meant, of which the highest one is no float32."""
    bits = np.uint32(np.uint32(exponent - np.uint8(1)) << np.uint32(23))
    return np.uint32(bits if exponent > 1 else np.uint32(1 << 21) << exponent).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def unpack_mxfp4(codes, exponents, out):  # type: ignore[no-untyped-def]
    """out[r, c] = value of a nibble times its block's power of two.

    codes [rows, blocks, 16] uint8, the lower nibble first; exponents [rows, blocks] uint8; out [rows, columns], in any order of
    memory, float32, or uint16 for bfloat16. In squares, so that a transposed matrix is written in whole lines.
    """
    rows, columns = out.shape
    values = np.empty(_BLOCK, dtype=np.float32)
    for first in range(0, rows, _BLOCK):
        for block in range(codes.shape[1]):
            begin = block * _BLOCK
            count = min(_BLOCK, columns - begin)
            for r in range(first, min(first + _BLOCK, rows)):
                scale, packed = _half_power(exponents[r, block]), codes[r, block]
                for pair in range(_BLOCK // 2):
                    values[2 * pair] = _twice_e2m1(packed[pair]) * scale
                    values[2 * pair + 1] = _twice_e2m1(packed[pair] >> np.uint8(4)) * scale
                into = out[r, begin : begin + count]
                if out.itemsize == 2:
                    for c in range(count):
                        into[c] = _bfloat16(values[c])
                else:
                    for c in range(count):
                        into[c] = values[c]
