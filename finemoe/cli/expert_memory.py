"""Recommends expert memory for a model, with the reason."""

import math
from dataclasses import dataclass
from typing import Any

from finemoe.units import format_bytes

_AHEAD = 1.25  # times what a token activates: the rest is for experts loaded ahead
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class ExpertMemory:
    """Expert memory on one device.

    Args:
        slot_bytes: size of a record in its slot.
        room_bytes: size of an unpacked expert; 0 if experts are not packed.
        num_layers, num_experts, top_k: L, J, K.
    """

    slot_bytes: int
    room_bytes: int
    num_layers: int
    num_experts: int
    top_k: int

    @property
    def smallest_bytes(self) -> int:
        """The least with which an expert can be computed."""
        return self.slot_bytes + self.room_bytes

    @property
    def recommended_slots(self) -> int:
        """More than a token activates, but never more than there are experts."""
        return min(self.num_layers * self.num_experts, math.ceil(_AHEAD * self.num_layers * self.top_k))

    @property
    def recommended_bytes(self) -> int:
        return self.recommended_slots * self.slot_bytes + self.room_bytes

    def facts(self) -> dict[str, Any]:
        """The rows of `finemoe info`."""
        return {
            "smallest_expert_memory_bytes": self.smallest_bytes,
            "smallest_because": self._smallest_because,
            "recommended_expert_memory": _as_option(self.recommended_bytes),
            "recommended_expert_memory_bytes": self.recommended_bytes,
            "recommended_slots": self.recommended_slots,
            "recommended_because": self._recommended_because,
        }

    @property
    def _smallest_because(self) -> str:
        one = f"one expert in its slot ({format_bytes(self.slot_bytes)})"
        room = f"the room where it is unpacked ({format_bytes(self.room_bytes)} in bf16)"
        return f"{one}, and {room}" if self.room_bytes else one

    @property
    def _recommended_because(self) -> str:
        cycle, before = self.num_layers * self.top_k, (self.num_layers - 1) * self.top_k
        activated = f"{_AHEAD:g} x the {cycle} experts that one token activates ({self.num_layers} layers x {self.top_k})"
        if self.recommended_slots == self.num_layers * self.num_experts:
            return f"all experts, at most {activated}"
        return (
            f"{activated}; with up to {before} slots, LRU hits nothing at one token per step, because a layer's experts are "
            f"evicted before the next token reaches it; from {cycle} slots, it hits every expert that a token shares with the "
            "token before; the rest is for prefetched experts"
        )


def _as_option(num_bytes: int) -> str:
    """A value for `--expert-memory`, rounded up."""
    unit, name = (_GIB, "GiB") if num_bytes >= _GIB // 10 else (_MIB, "MiB")
    return f"{math.ceil(num_bytes / unit * 100) / 100:.2f}{name}"
