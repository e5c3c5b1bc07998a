"""How an expert lies in memory: one contiguous record of bytes, so that one expert is one transfer (DESIGN 5, "Tiers").

A weight keeps its *phase*, the bytes by which it begins past a multiple of 256: kernels are chosen by it and round differently
(cuBLASLt looks at up to 256 bytes, CPUs at a line of 64). In a checkpoint's file that is mapped into memory weights begin at any
multiple of 8, and CPUs without AVX-512 round the product of such a weight and a single token otherwise; moved to a round address,
it would no longer give eager's bits. Experts whose size is no multiple of 256 bytes begin in different phases, as eager finds
them in the fused parameter. That begins at a multiple of 512 on CUDA; on the CPU a multiple of 64 is all that allocations keep.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from finemoe.models.layers import MoELayer
from finemoe.packing.record import aligned

if TYPE_CHECKING:
    from finemoe.runtime.packing import Packing

_PHASES = 256  # bytes after which alignment begins anew, the most that any kernel looks at
LINE_BYTES = 64  # to which memory on the CPU is aligned


@dataclass(frozen=True)
class Field:
    """One weight inside a record: where its room starts, expert 0's phase, its shape without the expert axis, its type."""

    name: str
    offset_bytes: int
    phase_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())

    @property
    def period(self) -> int:
        """Number of experts after which phases repeat."""
        return _PHASES // self._step_bytes

    @property
    def _step_bytes(self) -> int:
        """By what experts' phases differ: any multiple of it."""
        return math.gcd(_PHASES, self.nbytes)

    @property
    def room_bytes(self) -> int:
        """What the weight takes, whichever its expert is."""
        most = _PHASES - self._step_bytes + self.phase_bytes % self._step_bytes
        return -(-(most + self.nbytes) // _PHASES) * _PHASES

    def start_bytes(self, expert: int) -> int:
        """Where an expert's weight begins inside its record."""
        return self.offset_bytes + (self.phase_bytes + expert * self.nbytes) % _PHASES

    def view(self, record: torch.Tensor, expert: int) -> torch.Tensor:
        """An expert's weight inside its record of bytes, [record_bytes] uint8."""
        start = self.start_bytes(expert)
        return record[start : start + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedField(Field):
    """A packed tensor inside a record: it begins at the same place in every expert's, since what it is worth does not depend on
    where it lies."""

    @property
    def period(self) -> int:
        """See Field."""
        return 1

    @property
    def room_bytes(self) -> int:
        """See Field."""
        return aligned(self.nbytes)

    def start_bytes(self, expert: int) -> int:
        """See Field."""
        return self.offset_bytes


@dataclass(frozen=True)
class ExpertLayout:
    """How one layer's experts lie in their records; layers of equal shapes and phases have equal layouts.

    Attributes:
        packing: how a record is unpacked; None where it holds the weights as the layer computes with them.
    """

    fields: tuple[Field, ...]
    nbytes: int
    packing: "Packing | None" = None

    @classmethod
    def of(cls, layer: MoELayer, phases: Mapping[str, int] | None = None) -> "ExpertLayout":
        """The layout of a layer's records; phases: by parameter name, bytes; 0 for what is not named."""
        fields, offset = [], 0
        for name, parameter in layer.expert_parameters().items():
            field = Field(name, offset, (phases or {}).get(name, 0), tuple(parameter.shape[1:]), parameter.dtype)
            fields.append(field)
            offset += field.room_bytes
        return cls(tuple(fields), offset)

    @classmethod
    def packed(cls, packing: "Packing") -> "ExpertLayout":
        """The layout of records that hold a layer's packed tensors side by side."""
        fields, offset = [], 0
        for name, tensor in packing.tensors.items():
            field = PackedField(name, offset, 0, tensor.shape, tensor.dtype)
            fields.append(field)
            offset += field.room_bytes
        return cls(tuple(fields), offset, packing)

    @classmethod
    def in_place(cls, layer: MoELayer, device: torch.device) -> "ExpertLayout":
        """The layout that keeps the phases of weights which eager would read where they are, on `device`."""
        parameters = layer.expert_parameters()
        return cls.of(layer, {name: phase_of(one) for name, one in parameters.items() if one.device == device})

    @cached_property
    def period(self) -> int:
        """Number of experts after which all weights begin as in the first one's record."""
        return math.lcm(*(field.period for field in self.fields))

    def views(self, record: torch.Tensor, expert: int) -> dict[str, torch.Tensor]:
        """Every weight inside an expert's record, by parameter name."""
        return {field.name: field.view(record, expert) for field in self.fields}


def phase_of(weight: torch.Tensor) -> int:
    """By how many bytes a weight begins past a multiple of 64, the phase of a fused parameter on the CPU; 0 elsewhere, and where
    its own type could not begin there."""
    phase = weight.data_ptr() % LINE_BYTES if weight.device.type == "cpu" else 0
    return 0 if phase % weight.element_size() else phase


def room_for(field: Field, count: int, device: torch.device) -> torch.Tensor:
    """Uninitialised memory for one weight of `count` experts, [count, ...], that begins in the field's phase."""
    skipped = field.phase_bytes // field.dtype.itemsize
    numel = count * int(torch.Size(field.shape).numel())
    return torch.empty(skipped + numel, dtype=field.dtype, device=device)[skipped:].view(count, *field.shape)


def copied_in_phase(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A weight's copy on another device, issued and not waited for, that begins in the same phase."""
    skipped = weight.data_ptr() % _PHASES // weight.element_size()
    memory = torch.empty(skipped + weight.numel(), dtype=weight.dtype, device=device)
    return memory[skipped:].view(weight.shape).copy_(weight, non_blocking=True)
