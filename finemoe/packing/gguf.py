"""GGUF's types: blocks of bytes along a row, unpacked by Transformers' own torch code (llama.cpp's formats).

For most architectures Transformers unpacks to float32, with the `gguf` package on NumPy, and rounds once to the layer's compute
type; its torch code gives the same bits. For some (qwen35moe) it unpacks in the layer's own type, which rounds more often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finemoe.packing import gguf_fives
from finemoe.packing.codec import Codec, PackedTensor


@dataclass(frozen=True)
class Gguf(Codec):
    """A matrix in blocks of one of GGML's quantised types.

    Args:
        shape: rows, columns; the columns are a multiple of the type's block.
        type_id: GGML's number of the type.
        format: "gguf " and GGML's name of the type.
        arithmetic: type in which it is unpacked.
    """

    shape: tuple[int, int]
    type_id: int
    format: str
    arithmetic: torch.dtype = torch.float32

    @classmethod
    def of(cls, shape: tuple[int, int], type_id: int, arithmetic: torch.dtype = torch.float32) -> "Gguf":
        """Create one with the format name of its type."""
        from transformers.integrations.gguf.dequant import GGML_NAME

        name = gguf_fives.NAME.get(type_id) or GGML_NAME[type_id]
        return cls(shape, type_id, f"gguf {name}", arithmetic)

    @property
    def tensors(self) -> tuple[PackedTensor, ...]:
        """See Codec."""
        block = block_of(self.type_id)
        assert block is not None
        return (PackedTensor("blocks", (self.shape[0], self.shape[1] // block[0] * block[1]), torch.uint8),)

    def unpack(self, packed: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See Codec."""
        from transformers.integrations.gguf.dequant import dequantize

        data = packed[0].reshape(-1)
        if self.type_id in gguf_fives.BLOCK:
            out.copy_(gguf_fives.dequantize(data, self.type_id).view(self.shape))
        else:
            out.copy_(dequantize(data, self.type_id, self.arithmetic).view(self.shape))


def block_of(type_id: int) -> tuple[int, int] | None:
    """Values and bytes per block of a type, by GGML's number; None for types that cannot be unpacked and for unquantised
    types."""
    from transformers.integrations.gguf.dequant import GGML_BLOCK

    found: tuple[int, int] | None = gguf_fives.BLOCK.get(type_id) or GGML_BLOCK.get(type_id)
    return found
