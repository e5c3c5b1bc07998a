"""A device's cache by address, for compiled code that takes one number instead of its 26 arrays."""

import numpy as np

from finemoe import native
from finemoe.cache import state
from finemoe.cache.state import CacheState, Statistics
from finemoe.compiling import njit
from finemoe.native import bool_at, float32_at, float64_at, int64_at, uint8_at
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, native.compiled.__file__, state.__file__)
_SIZES = 4  # N, S, L, R, before the addresses


def addresses_of(cache: CacheState) -> np.ndarray:
    """The addresses that `cache_at` needs to find the cache, [n] int64; valid as long as the cache's arrays exist."""
    stats = cache.stats
    sizes = len(cache.presence), len(cache.held), len(stats.turns), len(stats.own)
    arrays = [array for array in (*cache, *stats) if isinstance(array, np.ndarray)]
    assert all(array.flags.c_contiguous for array in arrays)
    return np.array([*sizes, *(array.ctypes.data for array in arrays), stats.num_experts], dtype=np.int64)


@njit(cache=True)
def cache_at(table):  # type: ignore[no-untyped-def]
    """The cache for a table made by `addresses_of`."""
    num_experts, num_slots, num_layers, num_rows = table[0], table[1], table[2], table[3]
    at = table[_SIZES:]
    stats = Statistics(
        at[22],
        int64_at(at[11], num_experts),
        int64_at(at[12], num_experts),
        int64_at(at[13], num_experts),
        int64_at(at[14], num_experts),
        int64_at(at[15], num_experts),
        int64_at(at[16], num_layers),
        int64_at(at[17], 3),
        float32_at(at[18], num_experts),
        int64_at(at[19], num_layers),
        int64_at(at[20], num_experts),
        float64_at(at[21], num_rows * num_experts).reshape(num_rows, num_experts),
    )
    return CacheState(
        uint8_at(at[0], num_experts),
        int64_at(at[1], num_experts),
        int64_at(at[2], num_slots),
        bool_at(at[3], num_experts),
        bool_at(at[4], num_experts),
        bool_at(at[5], num_experts),
        float64_at(at[6], num_slots),
        int64_at(at[7], state.NUM_COUNTS),
        int64_at(at[8], num_experts),
        float64_at(at[9], num_experts),
        bool_at(at[10], num_experts),
        stats,
    )
