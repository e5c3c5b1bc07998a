"""Which of GGML's types llama.cpp's quantisation tool uses for the experts of a named mix, such as Q4_K_M.

The rule is that of `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp, without an importance matrix: gate and up use
the mix's base type, and down has more bits in the layers that are considered sensitive. There, `Q4_K` and `Q5_K` are aliases of
the medium mixes. Files made by other rules have other sizes; the types in an existing file are read from the file.
"""

from finemoe.errors import FinemoeError
from finemoe.packing import gguf_fives
from finemoe.packing.gguf import Gguf, block_of

_OWN = {
    "Q4_0": "Q4_0",
    "Q8_0": "Q8_0",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q4_K": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q5_K": "Q5_K",
    "Q6_K": "Q6_K",
}
_MEDIUM = ("Q4_K_M", "Q4_K", "Q5_K_M", "Q5_K")
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are not a multiple of a block
MIXES = tuple(_OWN)


def require_mix(mix: str) -> None:
    """Refuse an unknown mix.

    Raises:
        FinemoeError: there is no mix of this name; the message lists the known ones.
    """
    if mix not in _OWN:
        raise FinemoeError(f"unknown GGUF mix {mix!r}; known: {', '.join(MIXES)}")


def codec_in_mix(mix: str, is_down: bool, block: int, num_blocks: int, shape: tuple[int, int]) -> Gguf:
    """The codec of a matrix of an expert in a mix.

    Args:
        mix: name of the mix.
        is_down: whether the matrix is the projection back to the hidden size.
        block: number of the decoder layer.
        num_blocks: number of decoder layers, dense ones included.
        shape: rows, columns.
    Raises:
        FinemoeError: its rows fit no block type; llama.cpp leaves such rows in F16.
    """
    name = type_in_mix(mix, is_down, block, num_blocks)
    numbers = _numbers()
    for one in (name, _FALLBACKS.get(name)):
        if one is not None and shape[1] % _values_of(numbers[one]) == 0:
            return Gguf.of(shape, numbers[one])
    raise FinemoeError(f"rows of {shape[1]} are not a multiple of a block of {name}, nor of the type that llama.cpp uses instead")


def _numbers() -> dict[str, int]:
    """GGML's numbers of types, by name."""
    from transformers.integrations.gguf.dequant import GGML_NAME

    return {name: number for number, name in (GGML_NAME | gguf_fives.NAME).items()}


def _values_of(type_id: int) -> int:
    found = block_of(type_id)
    assert found is not None
    return found[0]


def type_in_mix(mix: str, is_down: bool, block: int, num_blocks: int) -> str:
    """Name of the type that a mix uses for a matrix whose rows fit; arguments as in `codec_in_mix`."""
    require_mix(mix)
    if is_down and mix in _MEDIUM and _has_more_bits(block, num_blocks):
        return "Q6_K"
    if is_down and mix == "Q4_K_S" and block < num_blocks // 8:
        return "Q5_K"
    return _OWN[mix]


def _has_more_bits(block: int, num_blocks: int) -> bool:
    """Whether a layer is in the first or last eighth, or is every third one in between."""
    eighth = num_blocks // 8
    return block < eighth or block >= 7 * num_blocks // 8 or (block - eighth) % 3 == 2
