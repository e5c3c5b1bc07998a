"""What a replay runs on, in words and for JSON: an instant link, or a described machine and a model's sizes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finemoe.cli.printing import counted
from finemoe.units import format_bytes


@dataclass(frozen=True)
class Setting:
    """One trace on one machine.

    Attributes:
        path: of the trace. served: its requests that are replayed. devices: how many share the experts.
        testbed, size: the machine and the model's sizes in virtual time; None with an instant link.
    """

    path: Path
    served: Any
    devices: int
    testbed: Any = None
    size: Any = None

    @classmethod
    def of(
        cls, path: Path, served: Any, hardware: str | None, model: Any, devices: int | None, expert_bits: float | None = None
    ) -> "Setting":
        """From the options of the command; model: a name, sizes, or None.

        Raises:
            FinemoeError: the machine or the model is unknown, or the model has other sizes than the trace.
        """
        from finemoe.errors import FinemoeError
        from finemoe.simulation.cost import ModelSize, size_of
        from finemoe.simulation.testbed import Testbed

        if hardware is None:
            return cls(path, served, devices or 1)
        testbed = Testbed.load(hardware)
        testbed = testbed if devices is None else replace(testbed, devices=devices)
        if isinstance(model, ModelSize) and (model.num_layers, model.num_experts) != (served.num_layers, served.num_experts):
            texts = [f"{one.num_layers} layers x {one.num_experts} experts" for one in (model, served)]
            raise FinemoeError(f"{model.name} has {texts[0]}, the trace {texts[1]}; name a model of the trace's sizes")
        size = size_of(model, served.num_layers, served.num_experts, served.top_k)
        return cls(path, served, testbed.devices, testbed, size if expert_bits is None else size.in_bits(expert_bits))

    @property
    def is_timed(self) -> bool:
        """Whether times are simulated."""
        return self.testbed is not None

    @property
    def expert_bytes(self) -> int:
        """Size of one expert in the reports; 1 where they count experts."""
        return 1 if self.size is None else int(self.size.expert_bytes)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `sweep`."""
        return {"hardware": self.testbed, "model": self.size} if self.is_timed else {"devices": self.devices}

    def title(self, expert_memory: float | str) -> str:
        """Trace, machine, model and expert memory, in lines that fit a terminal."""
        served = counted(self.served.num_requests, "request")
        if not self.is_timed:
            devices = "" if self.devices == 1 else f", {self.devices} devices"
            return f"{self.path}\n{served}, instant link{devices}; {self.memory(expert_memory)}"
        devices = counted(self.devices, "device") if self.devices > 1 else "one device"
        return (
            f"{self.path}\n{served} in virtual time on {self.testbed.title}\n"
            f"{self.size.name}, {format_bytes(self.size.expert_bytes)} an expert; {devices}\n{self.memory(expert_memory)}"
        )

    def memory(self, expert_memory: float | str) -> str:
        """Expert memory in words."""
        slots, total = self.slots(expert_memory), self.served.num_layers * self.served.num_experts
        given = expert_memory if isinstance(expert_memory, str) else f"{100 * expert_memory:.4g} %"
        held = min(total, slots * self.devices)
        if not self.is_timed:
            return f"expert memory {given} ({held:,} of {total:,} experts)"
        each = format_bytes(slots * self.size.expert_bytes)
        where = f"{each} on each of {self.devices} devices" if self.devices > 1 else each
        return f"expert memory {given}: {where} ({held:,} of {total:,} experts)"

    def slots(self, expert_memory: float | str) -> int:
        """Experts that the cache of each device holds.

        Raises:
            FinemoeError: it holds none.
        """
        from finemoe.cache.capacity import slots_per_device

        total = self.served.num_layers * self.served.num_experts
        return slots_per_device(expert_memory, self.size.expert_bytes if self.size else None, total, self.devices)

    def facts(self, expert_memory: float | str) -> dict[str, Any]:
        """The machine for JSON; nothing with an instant link."""
        if not self.is_timed:
            return {}
        return {
            "hardware": self.testbed.title,
            "model": self.size.name,
            "devices": self.devices,
            "expert_bytes": self.size.expert_bytes,
            "expert_memory_bytes_per_device": self.slots(expert_memory) * self.size.expert_bytes,
        }
