"""Q5_0 and Q5_1, GGML's five-bit types, which Transformers' torch code does not support.

llama.cpp uses them for rows that are not a multiple of 256, such as `down` of Qwen1.5-MoE (1408) in a Q4_K_M file. The `gguf`
package, with which Transformers unpacks them while loading, performs the same operations on NumPy.
"""

import torch

BLOCK = {6: (32, 22), 7: (32, 24)}  # values and bytes per block, by GGML's number of a type
NAME = {6: "Q5_0", 7: "Q5_1"}
_OFFSET = 16  # offset of Q5_0's signed values


def dequantize(data: torch.Tensor, type_id: int) -> torch.Tensor:
    """Unpack blocks of bytes, flat uint8, to values, flat float32."""
    blocks = data.view(-1, BLOCK[type_id][1])
    start = 2 if type_id == 6 else 4  # after the scale, and after Q5_1's minimum
    scale = blocks[:, :2].view(torch.float16).float()
    quants = _quants(blocks[:, start : start + 4], blocks[:, start + 4 :])
    if type_id == 6:
        return (scale * (quants - _OFFSET)).view(-1)
    return (scale * quants + blocks[:, 2:4].view(torch.float16).float()).view(-1)


def _quants(fifth: torch.Tensor, nibbles: torch.Tensor) -> torch.Tensor:
    """Five-bit integers, [blocks, 32] float32.

    Args:
        fifth: [blocks, 4] uint8, the highest bit of each value; the first value has the lowest bit.
        nibbles: [blocks, 16] uint8, the lower four bits; low nibbles belong to the first 16 values.
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=fifth.device)
    high = ((fifth[:, :, None] >> shifts) & 1).view(-1, 32)
    low = torch.cat((nibbles & 15, nibbles >> 4), dim=1)
    return (low | (high << 4)).float()
