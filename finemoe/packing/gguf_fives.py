"""Q5_0 and Q5_1, GGML's types of five bits, which Transformers' torch code does not know.

llama.cpp takes them where rows are no multiple of 256, as `down` of Qwen1.5-MoE (1408) in a file of Q4_K_M. The `gguf` package,
by which Transformers unpacks them while it loads, does the same operations on NumPy.
"""

import torch

BLOCK = {6: (32, 22), 7: (32, 24)}  # by GGML's number of a type: values and bytes of a block
NAME = {6: "Q5_0", 7: "Q5_1"}
_OFFSET = 16  # of Q5_0's values, which have a sign


def dequantize(data: torch.Tensor, type_id: int) -> torch.Tensor:
    """The values of blocks of bytes, float32, flat; data: uint8, flat."""
    blocks = data.view(-1, BLOCK[type_id][1])
    start = 2 if type_id == 6 else 4  # after the scale, and the minimum where there is one
    scale = blocks[:, :2].view(torch.float16).float()
    quants = _quants(blocks[:, start : start + 4], blocks[:, start + 4 :])
    if type_id == 6:
        return (scale * (quants - _OFFSET)).view(-1)
    return (scale * quants + blocks[:, 2:4].view(torch.float16).float()).view(-1)


def _quants(fifth: torch.Tensor, nibbles: torch.Tensor) -> torch.Tensor:
    """Whole numbers of five bits, [blocks, 32] float32.

    Args:
        fifth: [blocks, 4] uint8, the highest bit of each, the first value's lowest. nibbles: [blocks, 16] uint8, the lower ones
            of which are the first 16 values'.
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=fifth.device)
    high = ((fifth[:, :, None] >> shifts) & 1).view(-1, 32)
    low = torch.cat((nibbles & 15, nibbles >> 4), dim=1)
    return (low | (high << 4)).float()
