"""GGUF's types: blocks of bytes along a row, unpacked by Transformers' own torch code (llama.cpp's formats).

For most architectures Transformers unpacks to float32, by the `gguf` package on NumPy, and rounds once to the type that the layer
computes in; its torch code gives the same bits. For some (qwen35moe) it unpacks in the layer's own type, which rounds more often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing.codec import Codec, PackedTensor


@dataclass(frozen=True)
class Gguf(Codec):
    """A matrix in blocks of one of GGML's quantised types.

    Args:
        shape: rows, columns, a multiple of the type's block; type_id: GGML's number of the type.
        format: "gguf " and GGML's name of it. arithmetic: the type in which it is unpacked.
    """

    shape: tuple[int, int]
    type_id: int
    format: str
    arithmetic: torch.dtype = torch.float32

    @classmethod
    def of(cls, shape: tuple[int, int], type_id: int, arithmetic: torch.dtype = torch.float32) -> "Gguf":
        """Named after its type."""
        from transformers.integrations.gguf.dequant import GGML_NAME

        return cls(shape, type_id, f"gguf {GGML_NAME[type_id]}", arithmetic)

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        from transformers.integrations.gguf.dequant import row_bytes

        return (PackedTensor("blocks", (self.shape[0], row_bytes(self.type_id, self.shape[1])), torch.uint8),)

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        from transformers.integrations.gguf.dequant import dequantize

        out.copy_(dequantize(packed[0].reshape(-1), self.type_id, self.arithmetic).view(self.shape))
