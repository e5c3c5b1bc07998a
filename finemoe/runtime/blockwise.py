"""Dequantises FP8 by the block size in a checkpoint's configuration, also if a size is not a multiple of it.

Transformers (5.23) derives the block size from the grid of scales: with blocks of 128 it refuses a weight of 576 rows, such as
DeepSeek-V3's `kv_a_proj_with_mqa`, and silently reads one of 192 rows as two blocks of 96. Where blocks divide a weight evenly,
Transformers' own operation is used.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from finemoe.packing.fp8 import as_float32, grid_of, scale_by_block


class BlockwiseDequantize(Fp8Dequantize):
    """Replaces Transformers' operation, for one quantiser."""

    def _dequantize_one(
        self, quantized: torch.Tensor, scales: torch.Tensor, output_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        block = block_of(self)
        if block is None or not is_ragged(quantized, scales, block):
            dequantized: torch.Tensor = super()._dequantize_one(quantized, scales, output_dtype=output_dtype)
            return dequantized
        usual = scales.dtype if scales.dtype.is_floating_point and scales.element_size() > 1 else torch.bfloat16
        out = torch.empty(quantized.shape, dtype=output_dtype or usual, device=quantized.device)
        scale_by_block(quantized.float(), as_float32(scales), block, out)
        return out


def block_of(operation: Fp8Dequantize) -> tuple[int, int] | None:
    """Rows and columns of a block, from the checkpoint's configuration; None for one scale per weight."""
    told = getattr(operation.hf_quantizer.quantization_config, "weight_block_size", None)
    return None if not told else (int(told[0]), int(told[1]))


def is_ragged(quantized: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> bool:
    """Whether scales cover a weight by blocks whose last ones are smaller."""
    if quantized.dtype != torch.float8_e4m3fn or quantized.ndim != 2 or scales.ndim != 2:
        return False
    rows, columns = quantized.shape
    return tuple(scales.shape) == grid_of((rows, columns), block) and bool(rows % block[0] or columns % block[1])


def replace_in(mapping: Iterable[Any]) -> None:
    """Replace Transformers' operation by this one in a list of conversions."""
    for entry in mapping:
        if isinstance(entry, WeightConverter):
            entry.operations[:] = [
                BlockwiseDequantize(one.hf_quantizer) if type(one) is Fp8Dequantize else one for one in entry.operations
            ]
