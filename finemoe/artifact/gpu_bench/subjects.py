"""Models are loaded when a part first needs them, one at a time."""

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

_DEVICE_SHARE = 0.95  # share of the device's memory that may be used
_BUILD_S, _GENERATED_BYTES_PER_S = 5.0, 1e9  # random experts are generated on the device and copied to page-locked memory


class Subjects:
    """Holds the model under measurement.

    Args:
        settings: the settings of the measurement.
        folder: folder for recorded routing.
        device: the device that computes.
    """

    def __init__(self, settings: Settings, folder: Path, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._folder = folder
        self._subject: Subject | None = None
        self._built_s: dict[str, float] = {}

    def of(self, target: Target, expert_memory: float = 0.0, host_copies: int = 1) -> Subject:
        """The model, which is built unless it is the current one.

        Args:
            target: the model.
            expert_memory: share of its experts that will be on the device at once.
            host_copies: number of copies of the experts in host memory.
        Raises:
            NotHere: the host's or the device's memory is too small.
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
        """Seconds that `of` needs to build the model; the measured time if it was built before."""
        if self._is_at_hand(target):
            return 0.0
        guess_s = _BUILD_S + size_of_target(target).total_bytes / _GENERATED_BYTES_PER_S
        return self._built_s.get(target.name, guess_s)

    def close(self) -> None:
        """Release the current model."""
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
    """A model's size as the simulator needs it."""
    return ModelSize.from_config(target.source, target.name)
