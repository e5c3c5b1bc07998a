"""Number formats written out in NumPy, one value after another: what the codecs are measured with, and never made of."""

import numpy as np
import torch

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


def e4m3(byte: int) -> float:
    """The value of a byte: sign, four bits of exponent (bias 7), three of fraction; no infinity, and one NaN of either sign."""
    sign, exponent, fraction = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 15 and fraction == 7:
        return float("nan")
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


E4M3 = np.array([e4m3(byte) for byte in range(256)], dtype=np.float32)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """The byte of the nearest value, ties to the even byte; beyond 448 the largest."""
    size = np.abs(values.astype(np.float64))
    table = E4M3[:127].astype(np.float64)
    above = np.clip(np.searchsorted(table, size), 1, 126)
    below = above - 1
    up, down = table[above] - size, size - table[below]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (code + 128 * np.signbit(values)).astype(np.uint8)


def e8m0(byte: int) -> float:
    """The power of two of a byte; 255 is one, too, the largest, though the format says NaN. Not all of them are float32's."""
    return 2.0 ** (byte - 127)


def nibble(code: int) -> np.float32:
    """The value of four bits, e2m1."""
    return -FP4[code - 8] if code >= 8 else FP4[code]


def rounded(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """float32 values, each rounded once, ties to even."""
    assert values.dtype == np.float32
    if dtype == torch.float32:
        return torch.from_numpy(values.copy())
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(values.astype(np.float16))
    assert dtype == torch.bfloat16
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    halves = np.where(np.isnan(values), np.uint16(0x7FC0), halves)
    return torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16)


def float32(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values, float32."""
    return tensor.detach().float().numpy()


def quantize_fp8(matrix: np.ndarray, block: tuple[int, int], kind: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Bytes, scales as a checkpoint has them, and what both are worth; the last block of an axis may be a part of one.

    Args:
        kind: of the scales: "float32", "bfloat16", "uint8" (exponents) or "float8_e8m0fnu".
    """
    rows, columns = (-(-size // step) for size, step in zip(matrix.shape, block, strict=True))
    codes, worth = np.zeros(matrix.shape, np.uint8), np.zeros(matrix.shape, np.float32)
    scales, exponents = np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            part = (
                slice(row * block[0], (row + 1) * block[0]),
                slice(column * block[1], (column + 1) * block[1]),
            )
            most = float(np.abs(matrix[part]).max()) or 1.0
            if kind in ("float32", "bfloat16"):
                scale = np.float32(most / 448)
                scale = float32(rounded(np.array([scale]), torch.bfloat16))[0] if kind == "bfloat16" else scale
            else:
                exponents[row, column] = int(np.ceil(np.log2(most / 448))) + 127
                scale = np.float32(e8m0(int(exponents[row, column])))
            scales[row, column] = scale
            codes[part] = to_e4m3(matrix[part] / scale)
            worth[part] = E4M3[codes[part]] * scale
    stored = {
        "float32": lambda: torch.from_numpy(scales),
        "bfloat16": lambda: rounded(scales, torch.bfloat16),
        "uint8": lambda: torch.from_numpy(exponents),
        "float8_e8m0fnu": lambda: torch.from_numpy(exponents).view(torch.float8_e8m0fnu),
    }[kind]()
    return torch.from_numpy(codes).view(torch.float8_e4m3fn), stored, worth


def quantize_mxfp4(matrix: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Blocks [rows, columns / 32, 16], scales [rows, columns / 32], and what they are worth."""
    rows, columns = matrix.shape
    blocks, scales = np.zeros((rows, columns // 32, 16), np.uint8), np.zeros((rows, columns // 32), np.uint8)
    worth = np.zeros(matrix.shape, np.float32)
    for row in range(rows):
        for number in range(columns // 32):
            values = matrix[row, number * 32 : number * 32 + 32]
            exponent = int(np.floor(np.log2(np.abs(values).max() or 1.0))) - 2
            scales[row, number] = exponent + 127
            for place, value in enumerate(values):
                code = int(np.argmin(np.abs(FP4 - abs(value) / 2.0**exponent))) + 8 * int(np.signbit(value))
                blocks[row, number, place // 2] |= code << 4 * (place % 2)
                worth[row, number * 32 + place] = nibble(code) * np.float32(2.0**exponent)
    return torch.from_numpy(blocks), torch.from_numpy(scales), worth


def quantize_int(matrix: np.ndarray, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Words [rows, columns * bits / 32] int32 of unsigned fields, the first value lowest, scales [rows, groups] bfloat16, and
    what they are worth in float32."""
    rows, columns = matrix.shape
    half, per_word = 1 << (bits - 1), 32 // bits
    words, scales = np.zeros((rows, columns // per_word), np.uint32), np.zeros((rows, columns // group), np.float32)
    worth = np.zeros(matrix.shape, np.float32)
    for row in range(rows):
        for number in range(columns // group):
            part = slice(number * group, (number + 1) * group)
            scale = np.float32((np.abs(matrix[row, part]).max() or 1.0) / (half - 1))
            scale = float32(rounded(np.array([scale]), torch.bfloat16))[0]
            scales[row, number] = scale
            codes = np.clip(np.rint(matrix[row, part] / scale), -half, half - 1)
            worth[row, part] = codes.astype(np.float32) * scale
            for place, code in enumerate(codes, start=part.start):
                words[row, place // per_word] |= np.uint32(int(code) + half << bits * (place % per_word))
    return torch.from_numpy(words.view(np.int32)), rounded(scales, torch.bfloat16), worth
