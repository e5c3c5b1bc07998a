"""The memory that experts use on a device: their slots, and the rooms in which packed experts are unpacked (see `unpacking`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from finemoe.cache.capacity import byte_count, slots_per_device
from finemoe.errors import FinemoeError
from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.unpacking import room_bytes
from finemoe.units import is_whole


@dataclass(frozen=True)
class Room:
    """Sizes of one engine's memory.

    Attributes:
        slot_bytes: size of a slot.
        room_bytes: size of an unpacked expert; 0 if nothing is packed.
        is_unpacked: whether every slot has a room, rather than all sharing one.
    """

    slot_bytes: int
    room_bytes: int
    is_unpacked: bool

    @classmethod
    def of(cls, layouts: Sequence[ExpertLayout], slots: str) -> "Room":
        """The sizes for these record layouts; `slots` is as in `finemoe.load`."""
        return cls(max(layout.nbytes for layout in layouts), room_bytes(layouts), slots == "unpacked")

    def slots_per_device(self, expert_memory: int | float | str, num_experts: int, num_devices: int) -> int:
        """Number of slots per device. A share counts experts; a number of bytes must also hold the rooms.

        Raises:
            FinemoeError: as `cache.capacity.slots_per_device`, or the rooms leave space for less than one expert.
        """
        if not self.room_bytes or not (isinstance(expert_memory, str) or is_whole(expert_memory)):
            return slots_per_device(expert_memory, self.slot_bytes, num_experts, num_devices)
        num_bytes = byte_count(expert_memory, "expert_memory")
        rooms_a_slot = num_devices if self.is_unpacked else 0  # all rooms are on one device; slots are the same on all
        least_bytes = self.slot_bytes + max(1, rooms_a_slot) * self.room_bytes
        if num_bytes < least_bytes:
            raise FinemoeError(
                f"expert_memory is {num_bytes} bytes, but one expert takes {self.slot_bytes} packed, and "
                f"{least_bytes - self.slot_bytes} unpacked; give at least {least_bytes}, or a share in (0, 1]"
            )
        if self.is_unpacked:
            return slots_per_device(num_bytes, least_bytes, num_experts, num_devices)
        return slots_per_device(num_bytes - self.room_bytes, self.slot_bytes, num_experts, num_devices)

    def num_rooms(self, slots: int, num_devices: int) -> int:
        """Number of rooms for that many slots per device."""
        if not self.room_bytes:
            return 0
        return slots * num_devices if self.is_unpacked else 1

    def nbytes(self, slots: int, num_devices: int) -> int:
        """Bytes of slots and rooms on all devices together."""
        return slots * num_devices * self.slot_bytes + self.num_rooms(slots, num_devices) * self.room_bytes
