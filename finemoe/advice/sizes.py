"""The sizes of expert memory to consider."""

from collections.abc import Sequence

import numpy as np

from finemoe.cache.capacity import slots_per_device

_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
_CYCLES = (1.0, 1.25)
_NUM_CURVE_SIZES = 96


def timed_slots(num_layers: int, num_experts: int, top_k: int) -> list[int]:
    """Shares of all experts, and one token's experts with and without room to prefetch; never fewer than a layer's K."""
    count, cycle = num_layers * num_experts, num_layers * top_k
    sizes = [*(share * count for share in _SHARES), *(times * cycle for times in _CYCLES)]
    return sorted({min(count, max(top_k, round(size))) for size in sizes})


def curve_slots(num_layers: int, num_experts: int, top_k: int, more: Sequence[int]) -> np.ndarray:
    """Sizes for the hit-rate curves: evenly spaced ones, those around one token's cycle, and `more`."""
    count, cycle = num_layers * num_experts, num_layers * top_k
    spaced = np.linspace(top_k, count, min(_NUM_CURVE_SIZES, count)).round().astype(int)
    near = np.array([cycle - top_k, cycle - 1, cycle, cycle + top_k])
    return np.unique(np.clip(np.concatenate([spaced, near, np.asarray(more, dtype=int)]), 1, count))


def asked_slots(memories: Sequence[float | int | str], expert_bytes: int | None, num_experts: int, num_devices: int) -> list[int]:
    """The sizes that the user requests, in slots over all devices.

    Args:
        memories: shares of all experts, or bytes per device. num_experts: of the whole model.
    Raises:
        FinemoeError: a size is neither, or is smaller than one expert.
    """
    sizes = {slots_per_device(memory, expert_bytes, num_experts, num_devices) * num_devices for memory in memories}
    return sorted(min(size, num_experts) for size in sizes)
