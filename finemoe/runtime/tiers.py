"""Where experts live: one contiguous record per expert in host memory, equal slots on the device (DESIGN 5, "Tiers").

An expert is one record of bytes, so that it is one transfer; a slot hands out its weights as views of the model's own shapes.
"""

from dataclasses import dataclass

import torch

from finemoe.runtime.layers import MoELayer

_ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class Field:
    """One weight inside a record: where it starts, its shape without the expert axis, its type."""

    name: str
    offset_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())

    def view(self, record: torch.Tensor) -> torch.Tensor:
        """The weight inside a record of bytes [record_bytes]."""
        return record[self.offset_bytes : self.offset_bytes + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class RecordLayout:
    """How one layer's experts lie in their records."""

    fields: tuple[Field, ...]
    nbytes: int

    @classmethod
    def of(cls, layer: MoELayer) -> "RecordLayout":
        fields, offset = [], 0
        for name, parameter in layer.expert_parameters().items():
            field = Field(name, offset, tuple(parameter.shape[1:]), parameter.dtype)
            fields.append(field)
            offset += -(-field.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return cls(tuple(fields), offset)


class HostTier:
    """All experts of a model in host memory, [J, record_bytes] per layer, page-locked where a CUDA device reads them."""

    def __init__(self, layers: list[MoELayer], pinned: bool) -> None:
        self.layouts = [RecordLayout.of(layer) for layer in layers]
        self._records = [self._gather(layer, layout, pinned) for layer, layout in zip(layers, self.layouts, strict=True)]

    @property
    def record_bytes(self) -> int:
        """Bytes of the largest record, which is the size of a slot."""
        return max(layout.nbytes for layout in self.layouts)

    @property
    def num_records(self) -> int:
        return sum(len(records) for records in self._records)

    def record(self, layer: int, expert: int) -> torch.Tensor:
        """One expert's bytes, [record_bytes of its layer] uint8."""
        return self._records[layer][expert]

    def fused(self, layer: int, field: Field) -> torch.Tensor:
        """A layer's weight as the model had it, [J, *shape], copied out of the records."""
        return torch.stack([field.view(record) for record in self._records[layer]])

    @staticmethod
    def _gather(layer: MoELayer, layout: RecordLayout, pinned: bool) -> torch.Tensor:
        records = torch.zeros((layer.num_experts, layout.nbytes), dtype=torch.uint8, pin_memory=pinned)
        parameters = layer.expert_parameters()
        for field in layout.fields:
            for expert, record in enumerate(records):
                field.view(record).copy_(parameters[field.name].data[expert])
        return records


class SlotPool:
    """Equal slots of one device, each with ready-made weight views for every distinct layout."""

    def __init__(self, layouts: list[RecordLayout], num_slots: int, device: torch.device) -> None:
        self.device = device
        slot_bytes = max(layout.nbytes for layout in layouts)
        self._bytes = torch.zeros((num_slots, slot_bytes), dtype=torch.uint8, device=device)
        self._layouts = layouts
        self._views: dict[tuple[RecordLayout, int], dict[str, torch.Tensor]] = {}

    def bytes_of(self, layer: int, slot: int) -> torch.Tensor:
        """The part of a slot that a record of this layer fills, uint8."""
        return self._bytes[slot, : self._layouts[layer].nbytes]

    def weights(self, layer: int, slot: int) -> dict[str, torch.Tensor]:
        """The weights in a slot, by parameter name."""
        key = (self._layouts[layer], slot)
        if key not in self._views:
            self._views[key] = {field.name: field.view(self._bytes[slot]) for field in key[0].fields}
        return self._views[key]
