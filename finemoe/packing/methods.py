"""Chooses the codec of a matrix from its shape and a configuration's quantisation, without a checkpoint.

When a checkpoint is loaded, its own tensors determine the packing; a test compares the two.
"""

from collections.abc import Mapping
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Codec
from finemoe.packing.compressed import compressed
from finemoe.packing.fp8 import BLOCK, Fp8
from finemoe.packing.mxfp4 import Mxfp4
from finemoe.packing.transposed import Transposed


def quantization_of(config: Any) -> dict[str, Any] | None:
    """The quantisation in a Transformers configuration, as a dict; None if there is none."""
    for part in (config, config.get_text_config()):
        told = getattr(part, "quantization_config", None)
        if told is not None:
            return dict(told) if isinstance(told, Mapping) else dict(told.to_dict())
    return None


def method_of(told: Mapping[str, Any]) -> str:
    """The name of a quantisation."""
    is_bitsandbytes = told.get("load_in_4bit") or told.get("load_in_8bit")
    return str(told.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else "unknown"))


def codec_of(told: Mapping[str, Any], shape: tuple[int, int], is_transposed: bool) -> Codec:
    """The codec of one matrix.

    Args:
        told: quantization_config of a configuration.
        shape: shape of the matrix, as the layer computes with it.
        is_transposed: whether its first axis is the input.
    Raises:
        FinemoeError: the size of such a matrix is unknown.
    """
    method = method_of(told)
    if method == "mxfp4":
        return Transposed(Mxfp4((shape[1], shape[0]))) if is_transposed else Mxfp4(shape)
    if is_transposed:
        raise FinemoeError(f"experts quantised by {method} with transposed matrices: finemoe does not know their size")
    if method == "fp8":
        return _fp8(told, shape)
    if method == "compressed-tensors":
        return compressed(told, shape)
    raise FinemoeError(f"experts quantised by {method}: finemoe cannot unpack them, and does not know their size")


def _fp8(told: Mapping[str, Any], shape: tuple[int, int]) -> Fp8:
    """Scales count as float32 even if the configuration specifies ue8m0: some such checkpoints (DeepSeek-V3.1) store powers of
    two in float32, others bytes, and the difference is 0.02 % of the record."""
    block = told.get("weight_block_size", BLOCK)
    if block is None:
        return Fp8(shape, shape, (1,))
    rows, columns = block
    return Fp8.of(shape, (int(rows), int(columns)))
