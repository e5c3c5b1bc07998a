"""Layout of an expert's packed tensors in its record: one after another, each aligned for the widest load of a CUDA thread."""

from collections.abc import Iterable

from finemoe.packing.codec import PackedTensor

_ALIGNMENT_BYTES = 16


def aligned(num_bytes: int) -> int:
    """Bytes that a tensor of `num_bytes` occupies in a record."""
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def record_bytes(tensors: Iterable[PackedTensor]) -> int:
    """Size of a record that holds these tensors of one expert."""
    return sum(aligned(tensor.nbytes) for tensor in tensors)
