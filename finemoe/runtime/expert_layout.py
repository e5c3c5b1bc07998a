"""The memory layout of an expert: one contiguous record of bytes, so that one expert is one transfer (DESIGN 5, "Tiers").

A weight keeps its *phase*: the offset of its first byte from a multiple of 256. Libraries choose kernels by it, and kernels round
differently (cuBLASLt looks at up to 256 bytes, CPUs at a line of 64). In a memory-mapped checkpoint file, weights start at any
multiple of 8, and CPUs without AVX-512 round the product of such a weight and a single token differently; at a rounder address,
the bits would differ from eager's. Experts whose size is not a multiple of 256 bytes start in different phases, as in the fused
parameter that eager reads. That parameter starts at a multiple of 512 on CUDA; on the CPU, allocations only guarantee a
multiple of 64.
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

_PHASES = 256  # period of alignment in bytes, the most that any kernel considers
LINE_BYTES = 64  # alignment of memory on the CPU


@dataclass(frozen=True)
class Field:
    """One weight inside a record: start of its room, phase of expert 0, shape without the expert axis, and type."""

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
        """The step of phases between experts: they differ by multiples of it."""
        return math.gcd(_PHASES, self.nbytes)

    @property
    def room_bytes(self) -> int:
        """Bytes reserved for the weight of any expert."""
        most = _PHASES - self._step_bytes + self.phase_bytes % self._step_bytes
        return -(-(most + self.nbytes) // _PHASES) * _PHASES

    def start_bytes(self, expert: int) -> int:
        """Where an expert's weight starts inside its record."""
        return self.offset_bytes + (self.phase_bytes + expert * self.nbytes) % _PHASES

    def view(self, record: torch.Tensor, expert: int) -> torch.Tensor:
        """An expert's weight inside its record of bytes, [record_bytes] uint8."""
        start = self.start_bytes(expert)
        return record[start : start + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedField(Field):
    """A packed tensor inside a record. It starts at the same offset for every expert, since its value does not depend on its
    address."""

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
    """The layout of one layer's experts in their records; layers of equal shapes and phases have equal layouts.

    Attributes:
        fields: the tensors of a record.
        nbytes: size of a record.
        packing: how a record is unpacked; None if it holds the weights in the form that the layer computes with.
    """

    fields: tuple[Field, ...]
    nbytes: int
    packing: "Packing | None" = None

    @classmethod
    def of(cls, layer: MoELayer, phases: Mapping[str, int] | None = None) -> "ExpertLayout":
        """The layout of a layer's records; `phases` maps parameter names to bytes, 0 if absent."""
        fields, offset = [], 0
        for name, parameter in layer.expert_parameters().items():
            field = Field(name, offset, (phases or {}).get(name, 0), tuple(parameter.shape[1:]), parameter.dtype)
            fields.append(field)
            offset += field.room_bytes
        return cls(tuple(fields), offset)

    @classmethod
    def packed(cls, packing: "Packing") -> "ExpertLayout":
        """The layout of records that hold a layer's packed tensors one after another."""
        fields, offset = [], 0
        for name, tensor in packing.tensors.items():
            field = PackedField(name, offset, 0, tensor.shape, tensor.dtype)
            fields.append(field)
            offset += field.room_bytes
        return cls(tuple(fields), offset, packing)

    @classmethod
    def in_place(cls, layer: MoELayer, device: torch.device) -> "ExpertLayout":
        """The layout that keeps the phases of weights that eager would read where they are, on `device`."""
        parameters = layer.expert_parameters()
        return cls.of(layer, {name: phase_of(one) for name, one in parameters.items() if one.device == device})

    @cached_property
    def period(self) -> int:
        """Number of experts after which all weights start as in the first one's record."""
        return math.lcm(*(field.period for field in self.fields))

    def views(self, record: torch.Tensor, expert: int) -> dict[str, torch.Tensor]:
        """Every weight inside an expert's record, by parameter name."""
        return {field.name: field.view(record, expert) for field in self.fields}


def phase_of(weight: torch.Tensor) -> int:
    """The offset of a weight's first byte from a multiple of 64, the phase of a fused parameter on the CPU; 0 on other devices
    and for offsets at which its type cannot start."""
    phase = weight.data_ptr() % LINE_BYTES if weight.device.type == "cpu" else 0
    return 0 if phase % weight.element_size() else phase


def room_for(field: Field, count: int, device: torch.device) -> torch.Tensor:
    """Uninitialised memory for one weight of `count` experts, [count, ...], that starts in the field's phase."""
    skipped = field.phase_bytes // field.dtype.itemsize
    numel = count * int(torch.Size(field.shape).numel())
    return torch.empty(skipped + numel, dtype=field.dtype, device=device)[skipped:].view(count, *field.shape)


def copied_in_phase(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A weight's copy on another device that starts in the same phase; the copy is issued but not awaited."""
    skipped = weight.data_ptr() % _PHASES // weight.element_size()
    memory = torch.empty(skipped + weight.numel(), dtype=weight.dtype, device=device)
    return memory[skipped:].view(weight.shape).copy_(weight, non_blocking=True)
