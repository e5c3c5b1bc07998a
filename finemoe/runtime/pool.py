"""Equal slots in one device's memory, with prepared weight views for every layout that they may hold."""

from collections.abc import Sequence

import torch

from finemoe.errors import FinemoeError
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.free_memory import free_bytes
from finemoe.units import format_bytes


class SlotPool:
    """The memory behind one device's expert cache.

    Args:
        layouts: the record layout of every MoE layer.
        num_slots: how many experts fit.
        device: the device.
    Raises:
        FinemoeError: the device lacks memory for that many slots.
    """

    def __init__(self, layouts: Sequence[ExpertLayout], num_slots: int, device: torch.device) -> None:
        self.device, self.num_slots = device, num_slots
        slot_bytes = max(layout.nbytes for layout in layouts)
        free = free_bytes(device)
        if device.type == "cpu" and free is not None and num_slots * slot_bytes > free:  # else it ends the program later
            raise _too_large(num_slots, slot_bytes, device, free)
        try:
            self._bytes = torch.zeros((num_slots, slot_bytes), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch.OutOfMemoryError is a subclass
            raise _too_large(num_slots, slot_bytes, device, free) from error
        self._layouts = layouts
        views: dict[ExpertLayout, dict[int, dict[str, torch.Tensor]]] = {layout: {} for layout in layouts}
        self._views = [views[layout] for layout in layouts]  # layers of equal layouts share views

    def close(self) -> None:
        """Free the device's memory."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        for views in self._views:
            views.clear()

    @property
    def slot_bytes(self) -> int:
        """Distance between slots, in bytes."""
        return self._bytes.shape[1]

    def address(self, slot: int) -> int:
        """Address of a slot."""
        return self._bytes.data_ptr() + slot * self.slot_bytes

    def bytes_of(self, layer: int, slot: int) -> torch.Tensor:
        """The part of a slot that a record of this layer fills, uint8."""
        return self._bytes[slot, : self._layouts[layer].nbytes]

    def weights(self, layer: int, slot: int, expert: int) -> dict[str, torch.Tensor]:
        """The weights of the expert in a slot, by parameter name."""
        views, period = self._views[layer], self._layouts[layer].period
        key = slot * period + expert % period
        if key not in views:
            with torch.inference_mode(False):  # views made in inference mode are read-only outside it
                views[key] = self._layouts[layer].views(self._bytes[slot], expert)
        return views[key]

    def can_stack(self, layer: int) -> bool:
        """Whether a layer's experts start at the same offset in all slots."""
        return self._layouts[layer].period == 1

    def stacked(self, layer: int, first: int, count: int) -> dict[str, torch.Tensor]:
        """The weights in slots first to first + count - 1, by parameter name, [count, ...]. These are views of whatever the slots
        hold; only valid if `can_stack`."""
        slots = self._bytes[first : first + count]
        return {
            field.name: slots[:, field.start_bytes(0) : field.start_bytes(0) + field.nbytes]
            .view(field.dtype)
            .unflatten(1, field.shape)
            for field in self._layouts[layer].fields
        }


def _too_large(num_slots: int, slot_bytes: int, device: torch.device, free: int | None) -> FinemoeError:
    remedy = "lower expert_memory"
    if free is not None:
        most = min(free // slot_bytes, num_slots - 1) * slot_bytes
        remedy += f" to at most {most} bytes: {format_bytes(free)} are free"
    return FinemoeError(f"{num_slots * slot_bytes} bytes for experts cannot be allocated on {device}; {remedy}")
