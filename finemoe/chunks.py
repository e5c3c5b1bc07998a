"""Chunk sizes of prefetches on a link, live and simulated: an on-demand load waits for the chunk that is in flight."""

CHUNK_BYTES = 4 << 20
CUDA_CHUNK_BYTES = CHUNK_BYTES // 2  # two are in flight at a time, which together take as long as one chunk
PACED_CHUNK_S = 2.5e-4
_LEAST_CHUNK_BYTES = 4 << 10


def paced_chunk_bytes(bytes_per_s: float) -> int:
    """The chunk that a paced link transfers in about PACED_CHUNK_S, within bounds."""
    return min(max(int(bytes_per_s * PACED_CHUNK_S), _LEAST_CHUNK_BYTES), CHUNK_BYTES)
