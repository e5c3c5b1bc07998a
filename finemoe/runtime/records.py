"""How an expert lies in memory: one contiguous record of bytes, so that one expert is one transfer (DESIGN 5, "Tiers")."""

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
        """The weight inside a record of bytes, [record_bytes] uint8."""
        return record[self.offset_bytes : self.offset_bytes + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class RecordLayout:
    """How one layer's experts lie in their records; layers of equal shapes have equal layouts."""

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

    def views(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every weight inside a record, by parameter name."""
        return {field.name: field.view(record) for field in self.fields}
