"""Compiles the unpacking kernels for the CPU before they are needed."""

import functools

import torch

from finemoe.packing.fp8 import Fp8
from finemoe.packing.mxfp4 import Mxfp4
from finemoe.packing.transposed import Transposed


@functools.cache
def warm_up() -> None:
    """Compile every kernel (or load it from the cache on disk), so that no first token waits for a compiler."""
    for codec in (Fp8.of((2, 32)), Mxfp4((2, 32)), Mxfp4((2, 33)), Transposed(Mxfp4((32, 2)))):
        packed = [torch.zeros(tensor.shape, dtype=torch.uint8).to(tensor.dtype) for tensor in codec.tensors]
        for dtype in (torch.float32, torch.bfloat16):
            codec.unpack(packed, torch.empty(codec.shape, dtype=dtype))
