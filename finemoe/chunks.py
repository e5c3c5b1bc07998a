"""In what pieces prefetches go over a link, live and simulated: an on-demand load waits for the piece that is under way."""

CHUNK_BYTES = 4 << 20
CUDA_CHUNK_BYTES = CHUNK_BYTES // 2  # of which two are under way at a time, so that together they are as long
PACED_CHUNK_S = 2.5e-4
_LEAST_CHUNK_BYTES = 4 << 10


def paced_chunk_bytes(bytes_per_s: float) -> int:
    """A piece that takes a paced link about PACED_CHUNK_S, within bounds."""
    return min(max(int(bytes_per_s * PACED_CHUNK_S), _LEAST_CHUNK_BYTES), CHUNK_BYTES)
