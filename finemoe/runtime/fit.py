"""Whether the expert memory that a user asks for fits on the machine, known before a checkpoint's experts are read."""

from collections.abc import Sequence

import torch
from torch import nn

from finemoe.errors import FinemoeError
from finemoe.policies import policy_named
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.free_memory import free_bytes
from finemoe.runtime.options import EngineOptions
from finemoe.runtime.room import Room
from finemoe.units import format_bytes


def require_fit(model: nn.Module, layouts: Sequence[ExpertLayout], num_experts: int, options: EngineOptions) -> None:
    """Refuse expert memory that is too small or too large here, with the smallest that works and the largest that fits.

    Args:
        model: without its experts. layouts: record layout of every MoE layer. num_experts: of all layers together.
    Raises:
        FinemoeError: it is, or no expert memory fits at all.
    """
    room, count = Room.of(layouts, options.slots), len(options.devices)
    memory = 1.0 if policy_named(options.policy).holds_everything else options.expert_memory
    most_bytes = _most_bytes(model, layouts, num_experts, options)
    least_bytes = room.slot_bytes + room.num_rooms(1, count) * room.room_bytes
    if most_bytes is not None and most_bytes < least_bytes:
        raise FinemoeError(_no_room(model, layouts, num_experts, options, least_bytes))
    limit = "" if most_bytes is None else f"; at most {_as_option(most_bytes)} fits here"
    try:
        slots = room.slots_per_device(memory, num_experts, count)
    except FinemoeError as error:
        raise FinemoeError(f"{error}{limit}") from error
    wanted_bytes = slots * room.slot_bytes + room.num_rooms(slots, count) * room.room_bytes
    if most_bytes is not None and wanted_bytes > most_bytes:
        raise FinemoeError(
            f"expert_memory is {options.expert_memory}, which takes {format_bytes(wanted_bytes)} on {options.devices[0]}; "
            f"from {_as_option(least_bytes, is_least=True)}, which holds one expert, to {_as_option(most_bytes)} fits here, and "
            "keys and values need some of that"
        )


def _no_room(
    model: nn.Module, layouts: Sequence[ExpertLayout], num_experts: int, options: EngineOptions, least_bytes: int
) -> str:
    """Why not even one expert fits, and what to do."""
    home = options.devices[0]
    free = f"of the {format_bytes(free_bytes(home) or 0)} that are free on {home}"
    if home.type == "cpu":
        taken_bytes, remedy = _in_host_bytes(layouts, num_experts, options), "set host_memory to keep less there"
        return f"the experts take {format_bytes(taken_bytes)} {free}, which leaves too little for expert memory; {remedy}"
    rest = f"the other weights take {format_bytes(_rest_bytes(model, home))} {free}"
    return f"{rest}, which leaves less than one expert needs ({format_bytes(least_bytes)}); free memory there"


def _most_bytes(model: nn.Module, layouts: Sequence[ExpertLayout], num_experts: int, options: EngineOptions) -> int | None:
    """The largest expert memory of each device; None if the machine does not tell."""
    home, free = options.devices[0], [free_bytes(device) for device in options.devices]
    if any(one is None for one in free):
        return None
    least_bytes = min(one for one in free if one is not None)
    if home.type != "cpu":
        return max(min(least_bytes, (free[0] or 0) - _rest_bytes(model, home)), 0)
    return max(least_bytes - _in_host_bytes(layouts, num_experts, options), 0) // len(options.devices)


def _in_host_bytes(layouts: Sequence[ExpertLayout], num_experts: int, options: EngineOptions) -> int:
    """Bytes of experts that wait in host memory, at most."""
    stored_bytes = num_experts * max(layout.nbytes for layout in layouts)
    return stored_bytes if options.host_bytes is None else min(stored_bytes, options.host_bytes)


def _rest_bytes(model: nn.Module, home: torch.device) -> int:
    """Bytes of weights that still have to go to the device; the experts' parameters take no memory."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.device != home}
    return sum(tensor.nbytes for tensor in tensors.values() if tensor.is_contiguous())  # those without experts are not


def _as_option(num_bytes: int, is_least: bool = False) -> str:
    """A size as users write it, in a unit that keeps three digits: the largest rounded down, the smallest up."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= unit:
            hundredths = -(-num_bytes * 100 // unit) if is_least else num_bytes * 100 // unit
            return f"{hundredths / 100:g}{name}"
    return f"{num_bytes}B"
