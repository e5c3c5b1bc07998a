"""Unpacks experts on the computing device, right before a layer uses them (DESIGN 5, "Packed experts").

Records, link and slots hold an expert in its checkpoint's format. The weights that a layer computes with are made in *rooms*,
memory of the home device that is reused: one room is enough, since a layer requests one expert after another and the device
executes in that order. More rooms keep experts unpacked, evicting the least recently used first. A room never becomes stale:
weights do not change.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from finemoe.runtime.expert_layout import ExpertLayout
from finemoe.runtime.lean import Source
from finemoe.runtime.pool import SlotPool


class Unpacker:
    """The rooms of one engine.

    Args:
        layouts: the record layout of every MoE layer, some of them packed.
        num_rooms: how many experts stay unpacked.
        device: the device that computes.
    Attributes:
        num_unpacked: how often an expert was unpacked.
    """

    def __init__(self, layouts: Sequence[ExpertLayout], num_rooms: int, device: torch.device) -> None:
        self._packings, self._num_rooms = [layout.packing for layout in layouts], num_rooms
        some = next(packing for packing in self._packings if packing is not None)
        self._rooms = SlotPool([(packing or some).weights for packing in self._packings], num_rooms, device)
        self._room_of: OrderedDict[tuple[int, int], int] = OrderedDict()  # by (layer, expert), the most recently used last
        self._free: list[int] = []
        self.num_unpacked = 0

    def is_packed(self, layer: int) -> bool:
        """Whether a layer's experts need unpacking."""
        return self._packings[layer] is not None

    def weights(self, layer: int, expert: int, packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """An expert's weights by parameter name, valid until as many others are requested as there are rooms."""
        key = layer, expert
        room = self._room_of.get(key)
        if room is not None:
            self._room_of.move_to_end(key)
            return self._rooms.weights(layer, room, expert)
        room = self._free_room()
        weights, packing = self._rooms.weights(layer, room, expert), self._packings[layer]
        assert packing is not None
        packing.unpack(packed, weights)
        self._free.pop()
        self._room_of[key] = room  # last: an interrupt must not leave a room both free and in use
        self.num_unpacked += 1
        return weights

    def close(self) -> None:
        """Free the memory."""
        self._room_of.clear()
        self._rooms.close()

    def _free_room(self) -> int:
        if not self._free:
            self._free = [self._room_of.popitem(last=False)[1]] if self._room_of else list(range(self._num_rooms))
        return self._free[-1]


class Unpacked:
    """A layer's weights, unpacked when requested.

    Args:
        source: provides the packed tensors.
        layer: the layer.
        unpacker: the rooms.
    """

    def __init__(self, source: Source, layer: int, unpacker: Unpacker) -> None:
        self._source, self._layer, self._unpacker = source, layer, unpacker

    def weights(self, expert: int) -> dict[str, torch.Tensor]:
        """See Source."""
        return self._unpacker.weights(self._layer, expert, self._source.weights(expert))

    def as_they_come(self, experts: Sequence[int]) -> Iterable[int]:
        """See Source."""
        return self._source.as_they_come(experts)


def room_bytes(layouts: Sequence[ExpertLayout]) -> int:
    """Size of a room in bytes; 0 if nothing is packed."""
    return max((layout.packing.weights.nbytes for layout in layouts if layout.packing is not None), default=0)
