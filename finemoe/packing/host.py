"""Compiled unpacking on the CPU: one pass over a matrix, where torch needs a dozen. The bits equal torch's.

Results are float32, or bfloat16 stored as integers; each is rounded once, to the nearest, ties to even.
"""

from collections.abc import Sequence

import numpy as np
import torch

from finemoe.compiling import IS_COMPILED, njit

_BLOCK = 32  # values that share a power of two
_LEAST_PLAIN, _MOST_PLAIN = 2, 252  # exponents for which all values of a block are normal numbers
_NOT_A_NUMBER = np.uint16(0x7FC0)


def unpacks_here(out: torch.Tensor) -> bool:
    """Whether these functions can write a result of this type and device."""
    return IS_COMPILED and out.device.type == "cpu" and out.dtype in (torch.float32, torch.bfloat16)


def unpack_fp8(weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], out: torch.Tensor) -> None:
    """Unpack values times their block's scale.

    Args:
        weight: [rows, columns] float8_e4m3fn.
        scales: [blocks of rows, blocks of columns] float32.
        block: rows and columns that share a scale.
        out: [rows, columns], contiguous.
    """
    _fp8(weight.view(torch.uint8).numpy(), scales.numpy(), *block, _array(out))


def unpack_mxfp4(packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Unpack values times their block's power of two.

    Args:
        packed: blocks and exponents, as in Mxfp4.
        out: [rows, columns], in any memory order.
    """
    codes, exponents = (one.numpy() for one in packed)
    if out.dtype == torch.bfloat16 and out.t().is_contiguous():
        _mxfp4_transposed(codes, exponents, _array(out.t()))
    elif out.dtype == torch.bfloat16 and out.is_contiguous() and out.shape[1] % _BLOCK == 0 and out.data_ptr() % 4 == 0:
        _mxfp4_pairs(codes, exponents, out.view(torch.uint32).numpy())
    else:
        _mxfp4(codes, exponents, _array(out))


def _array(out: torch.Tensor) -> np.ndarray:
    """A float32 array, or bfloat16's bits as uint16."""
    return (out if out.dtype == torch.float32 else out.view(torch.uint16)).numpy()


@njit(cache=True, nogil=True, inline="always")
def _bits(value):  # type: ignore[no-untyped-def]
    """The bits of a float32, uint32."""
    return np.float32(value).view(np.uint32)


@njit(cache=True, nogil=True, inline="always")
def _bfloat16(value):  # type: ignore[no-untyped-def]
    """The bits of the nearest bfloat16."""
    bits = _bits(value)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))
    return rounded if value == value else _NOT_A_NUMBER  # only NaN differs from itself


@njit(cache=True, nogil=True, inline="always")
def _e4m3(code):  # type: ignore[no-untyped-def]
    """The value of an e4m3 byte."""
    size = np.uint32(code & np.uint8(0x7F))
    normal = np.uint32(np.uint32(size << np.uint32(20)) + np.uint32(120 << 23)).view(np.float32)
    value = np.float32(size) * np.float32(2.0**-9) if size < np.uint32(8) else normal
    value = np.float32(np.nan) if size == np.uint32(0x7F) else value
    sign = np.uint32(np.uint32(code & np.uint8(0x80)) << np.uint32(24))
    return np.uint32(_bits(value) | sign).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _fp8(codes, scales, block_rows, block_columns, out):  # type: ignore[no-untyped-def]
    """Fill out[r, c] = value of codes[r, c] times scales[r // block_rows, c // block_columns].

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
    """2^(exponent - 128), subnormal at 0 and 1: half of the scale, because the largest scale overflows float32."""
    bits = np.uint32(np.uint32(exponent - np.uint8(1)) << np.uint32(23))
    return np.uint32(bits if exponent > 1 else np.uint32(1 << 21) << exponent).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _mxfp4(codes, exponents, out):  # type: ignore[no-untyped-def]
    """Fill out[r, c] = value of a nibble times its block's power of two.

    codes [rows, blocks, 16] uint8, the lower nibble first; exponents [rows, blocks] uint8; out [rows, columns] in any memory
    order, float32, or uint16 for bfloat16. Works in squares, so that a transposed matrix is written in whole cache lines.
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


@njit(cache=True, nogil=True, inline="always")
def _bfloat16_of(code, exponent):  # type: ignore[no-untyped-def]
    """A nibble's value times 2^(exponent - 127) as the bits of a bfloat16, uint32, for exponents that make no result subnormal or
    infinite.

    Uses integers only: a value has two bits of exponent and one of mantissa, which are in the right place after a shift.
    """
    size = np.uint32(code & np.uint32(7))
    half = np.uint32((exponent - np.uint32(1)) << np.uint32(7))  # for 0.5, the only one with no implicit leading one
    bits = np.uint32(half + np.uint32(size << np.uint32(6)))
    bits = half if size == np.uint32(1) else bits
    bits = np.uint32(0) if size == np.uint32(0) else bits
    return np.uint32(bits | np.uint32((code & np.uint32(8)) << np.uint32(12)))


@njit(cache=True, nogil=True, inline="always")
def _pairs_of(packed, exponent, into):  # type: ignore[no-untyped-def]
    """One block: into [16] uint32, two bfloat16 values in each, the first one in the lower half."""
    plain = np.uint32(exponent)
    if plain < np.uint32(_LEAST_PLAIN) or plain > np.uint32(_MOST_PLAIN):
        scale = _half_power(exponent)
        for pair in range(_BLOCK // 2):
            low = np.uint32(_bfloat16(_twice_e2m1(packed[pair]) * scale))
            high = np.uint32(_bfloat16(_twice_e2m1(packed[pair] >> np.uint8(4)) * scale))
            into[pair] = np.uint32(low | np.uint32(high << np.uint32(16)))
    else:
        for pair in range(_BLOCK // 2):
            code = np.uint32(packed[pair])
            low, high = _bfloat16_of(code, plain), _bfloat16_of(np.uint32(code >> np.uint32(4)), plain)
            into[pair] = np.uint32(low | np.uint32(high << np.uint32(16)))


@njit(cache=True, nogil=True, error_model="numpy")
def _mxfp4_pairs(codes, exponents, out):  # type: ignore[no-untyped-def]
    """As `_mxfp4` for bfloat16 in rows of whole blocks: out [rows, columns / 2] uint32, two values in each."""
    rows, num_blocks, num_pairs = codes.shape
    for r in range(rows):
        for block in range(num_blocks):
            _pairs_of(codes[r, block], exponents[r, block], out[r, block * num_pairs : (block + 1) * num_pairs])


@njit(cache=True, nogil=True, error_model="numpy")
def _mxfp4_transposed(codes, exponents, out):  # type: ignore[no-untyped-def]
    """As `_mxfp4` for bfloat16, transposed: out [columns, rows] uint16, contiguous.

    Works in squares of 32 x 32, so that a whole cache line is written at a time.
    """
    columns, rows = out.shape
    square = np.empty((_BLOCK, _BLOCK // 2), dtype=np.uint32)
    for first in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - first)
        for block in range(codes.shape[1]):
            for r in range(count):
                _pairs_of(codes[first + r, block], exponents[first + r, block], square[r])
            begin = block * _BLOCK
            for c in range(min(_BLOCK, columns - begin)):
                into, shift = out[begin + c, first : first + count], np.uint32(16 * (c % 2))
                for r in range(count):
                    into[r] = np.uint16(square[r, c // 2] >> shift)
