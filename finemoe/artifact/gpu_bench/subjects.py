"""Models are brought into memory when a part first needs them, one at a time."""

import time
from pathlib import Path

import torch

from finemoe.artifact.gpu_bench.bench import NotHere
from finemoe.artifact.gpu_bench.machine import available_bytes
from finemoe.artifact.gpu_bench.routing import routing_of
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.simulation.cost import ModelSize
from finemoe.units import format_bytes

_DEVICE_SHARE = 0.95  # of its memory that may be taken
_BUILD_S, _GENERATED_BYTES_PER_S = 5.0, 1e9  # random experts, made on the device and copied out; host memory page-locked before


class Subjects:
    """Holds the model under measurement.

    Args:
        folder: where recorded routing is kept; device: where models compute.
    """

    def __init__(self, settings: Settings, folder: Path, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._folder = folder
        self._subject: Subject | None = None
        self._built_s: dict[str, float] = {}

    def of(self, target: Target, expert_memory: float = 0.0, host_copies: int = 1) -> Subject:
        """The model, built anew unless it is the one at hand.

        Args:
            expert_memory: share of its experts that will be on the device at once. host_copies: how often the host holds them.
        Raises:
            NotHere: a memory is too small for that.
        """
        self._require_room(target, expert_memory, host_copies)
        if not self._is_at_hand(target):
            self.close()
            begin_s = time.monotonic()
            trace = routing_of(target, self.settings, self._folder / "traces")
            self._subject = Subject(target, trace, self.settings, self.device)
            self._built_s[target.name] = time.monotonic() - begin_s
        assert self._subject is not None
        return self._subject

    def seconds_to_build(self, target: Target) -> float:
        """How long `of` takes beyond what it is asked for; as found, where the model was built before."""
        if self._is_at_hand(target):
            return 0.0
        guess_s = _BUILD_S + size_of_target(target).total_bytes / _GENERATED_BYTES_PER_S
        return self._built_s.get(target.name, guess_s)

    def close(self) -> None:
        """Let go of the model at hand."""
        if self._subject is not None:
            self._subject.close()
            self._subject = None

    def _is_at_hand(self, target: Target) -> bool:
        return self._subject is not None and self._subject.name == target.name

    def _require_room(self, target: Target, expert_memory: float, host_copies: int) -> None:
        size = size_of_target(target)
        needed, present = (
            host_copies * size.all_experts_bytes + size.resident_bytes,
            available_bytes(self.settings.host_memory_bytes),
        )
        if needed > present:
            raise NotHere(f"{target.name} takes {format_bytes(needed)} of host memory, and {format_bytes(present)} may be taken")
        if self.device.type == "cuda":
            needed = size.resident_bytes + int(expert_memory * size.all_experts_bytes)
            present = torch.cuda.get_device_properties(self.device).total_memory
            if needed > _DEVICE_SHARE * present:
                raise NotHere(f"{target.name} would take {format_bytes(needed)} on a device of {format_bytes(present)}")


def size_of_target(target: Target) -> ModelSize:
    """What the simulator knows of a model."""
    return ModelSize.from_config(target.source, target.name)
