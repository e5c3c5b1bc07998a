"""How many experts a memory size holds: converts a user's `expert_memory` to slots (DESIGN 3)."""

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.units import format_bytes, is_whole, parse_bytes


def slots_per_device(expert_memory: int | float | str, expert_bytes: int | None, num_experts: int, num_devices: int = 1) -> int:
    """Number of slots of every device, at most the number of experts that a device can have.

    Args:
        expert_memory: bytes per device (an int, or a string with a unit), or a share in (0, 1] of all experts over all devices.
        expert_bytes: size of the largest expert; None if unknown, in which case only a share is accepted.
        num_experts: routed experts of the whole model.
    Raises:
        FinemoeError: `expert_memory` is neither, or is in bytes without `expert_bytes`, or is less than one expert.
    """
    most = -(-num_experts // num_devices)
    if isinstance(expert_memory, float | np.floating):
        if not 0 < expert_memory <= 1:
            raise FinemoeError(f"expert_memory as a share must be in (0, 1], not {expert_memory}")
        if expert_memory == 1:
            return most  # all experts fit, even if the devices' shares are not equal
        return min(most, max(1, round(expert_memory * num_experts / num_devices)))
    if not (isinstance(expert_memory, str) or is_whole(expert_memory)):
        raise FinemoeError(f"expert_memory must be a share in (0, 1], bytes, or a string like '6GiB', not {expert_memory!r}")
    num_bytes = byte_count(expert_memory, "expert_memory")
    if expert_bytes is None:
        raise FinemoeError(f"expert_memory is {expert_memory!r}: bytes need expert_bytes; write 1.0 for all experts")
    if num_bytes < expert_bytes:
        least = f"; give at least that for each device ({format_bytes(expert_bytes)}), or a share such as 0.25"
        hint = "; write 1.0 for all experts" if num_bytes == 1 else least
        raise FinemoeError(f"expert_memory is {num_bytes} bytes, but one expert takes {expert_bytes}{hint}")
    return min(most, num_bytes // expert_bytes)


def byte_count(value: int | str, name: str) -> int:
    """Parse bytes given as an int or as a string with a unit.

    Raises:
        FinemoeError: it is neither, or is negative.
    """
    if not (isinstance(value, str) or is_whole(value)):
        raise FinemoeError(f"{name} must be bytes, or a string like '6GiB', not {value!r}")
    try:
        num_bytes = parse_bytes(value) if isinstance(value, str) else int(value)
    except FinemoeError as error:
        raise FinemoeError(f"{name}: {error}") from error
    if num_bytes < 0:
        raise FinemoeError(f"{name} is {num_bytes} bytes; it must not be negative")
    return num_bytes
