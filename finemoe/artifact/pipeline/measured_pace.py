"""How fast this machine is, for one model: micro-measurements, and the pace in virtual time that follows from them."""

from dataclasses import dataclass, field

import numpy as np

from finemoe.chunks import PACED_CHUNK_S
from finemoe.policies.block import Block
from finemoe.simulation.kernel_inputs import Durations
from finemoe.traces import RoutingTrace


@dataclass(frozen=True)
class SystemTimes:
    """What one system's own work takes, with nothing to load, in seconds.

    Attributes:
        added_s: what it adds to a layer of a model with everything resident: accounting, and publishing and searching where
            inference does it or is held up by it. start_s, gate_s: its search at an iteration's start and at a gate, alone.
        is_synchronous: whether inference waits for it.
    """

    added_s: float
    start_s: float = 0.0
    gate_s: float = 0.0
    is_synchronous: bool = False


@dataclass(frozen=True)
class LinkTimes:
    """A paced link, in seconds.

    Attributes:
        load_s: one expert's time at its bandwidth. wake_s: what handing it a demanded load and waking up takes beyond that.
        prefetch_s, synchronous_s: one expert ahead of demand, chunk by chunk, beside inference and while it waits.
    """

    load_s: float
    wake_s: float
    prefetch_s: float
    synchronous_s: float


@dataclass(frozen=True)
class Machine:
    """Micro-measurements of one model on this machine, in seconds.

    Attributes:
        prefill_s, decode_s: of an iteration with everything resident. expert_s: one expert's arithmetic for one token.
        cold_s: what a pause in a layer costs beyond its length, since caches are cold afterwards.
        systems: by policy, "on-demand" among them. links: by the load's nominal time.
    """

    expert_bytes: int
    prefill_s: float
    decode_s: float
    expert_s: float
    cold_s: float
    systems: dict[str, SystemTimes] = field(default_factory=dict)
    links: dict[float, LinkTimes] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredPace:
    """A machine's pace under one policy, over one of its links.

    Where what the policy adds to a layer, beyond what loading on demand adds, covers its search, inference searches itself, or
    might as well: while it is searched at the gate, what is missing is already being loaded. A longer search goes on beside.

    Args:
        machine: its micro-measurements. policy, load_s: name of the system and of the link.
    """

    machine: Machine
    policy: str
    load_s: float
    num_devices: int = 1
    hidden_size: int = 0
    hits_first: bool = True

    @property
    def expert_bytes(self) -> int:
        return self.machine.expert_bytes

    @property
    def prefetch_s(self) -> float:
        return self._link.synchronous_s if self._system.is_synchronous else self._link.prefetch_s

    @property
    def chunk_s(self) -> float:
        return self.prefetch_s * min(1.0, PACED_CHUNK_S / self.load_s)

    @property
    def wake_s(self) -> float:
        return self._link.wake_s + self.machine.cold_s

    @property
    def resume_s(self) -> float:
        return self.machine.cold_s

    @property
    def hand_over_s(self) -> float:
        return float("inf") if self._searches_itself else 0.0

    def durations(
        self, trace: RoutingTrace, block: Block, begins: np.ndarray, demanded: np.ndarray, read_bytes: np.ndarray
    ) -> Durations:
        """Of every event of a block; the policy's own work was measured, whatever it reads."""
        num_layers, machine = trace.num_layers, self.machine
        per_layer = np.where(block.is_prefill, machine.prefill_s, machine.decode_s) / num_layers
        start_s, gate_s, added_s = self._times_s(num_layers)
        before = np.repeat(per_layer, num_layers) + added_s - machine.expert_s * np.diff(begins)
        search = np.zeros((block.num_iterations, num_layers, 2))
        search[:, 0, 0], search[:, :, 1] = start_s, gate_s
        return Durations(
            before=np.maximum(before, 0.0),
            expert=np.full(len(demanded), machine.expert_s),
            after=np.zeros(block.num_iterations * num_layers),
            search=search.reshape(-1),
            earliest=np.zeros(block.num_iterations * num_layers),
        )

    @property
    def _system(self) -> SystemTimes:
        return self.machine.systems[self.policy]

    @property
    def _link(self) -> LinkTimes:
        return self.machine.links[self.load_s]

    @property
    def _beyond_accounting_s(self) -> float:
        return self._system.added_s - self.machine.systems["on-demand"].added_s

    @property
    def _searches_itself(self) -> bool:
        return not self._system.is_synchronous and 0 < self._system.gate_s <= self._beyond_accounting_s

    def _times_s(self, num_layers: int) -> tuple[float, float, float]:
        """The search at an iteration's start and at a gate, and what else is added to a layer; what inference waits for is not
        told from the rest of its layer."""
        system = self._system
        if system.is_synchronous:
            return 0.0, 0.0, system.added_s
        if not self._searches_itself:
            return system.start_s, system.gate_s, system.added_s
        gate_s = max(0.0, self._beyond_accounting_s - system.start_s / num_layers)
        return system.start_s, gate_s, self.machine.systems["on-demand"].added_s
