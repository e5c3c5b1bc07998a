"""The speed of this machine for one model: micro-measurements, and the pace in virtual time derived from them."""

from dataclasses import dataclass, field

import numpy as np

from finemoe.chunks import PACED_CHUNK_S
from finemoe.policies.block import Block
from finemoe.simulation.kernel_inputs import Durations
from finemoe.traces import RoutingTrace


@dataclass(frozen=True)
class SystemTimes:
    """Time of one system's own work when there is nothing to load, in seconds.

    Attributes:
        added_s: what the system adds to a layer of a fully resident model: accounting, plus publishing and searching if inference
            does them or waits for them.
        start_s, gate_s: its search at the start of an iteration and at a gate, measured alone.
        is_synchronous: whether inference waits for the search.
    """

    added_s: float
    start_s: float = 0.0
    gate_s: float = 0.0
    is_synchronous: bool = False


@dataclass(frozen=True)
class LinkTimes:
    """A paced link, in seconds.

    Attributes:
        load_s: time of one expert at the link's bandwidth.
        wake_s: additional time to hand over a demanded load and to wake up.
        prefetch_s, synchronous_s: time to prefetch one expert chunk by chunk, while inference runs and while inference waits.
    """

    load_s: float
    wake_s: float
    prefetch_s: float
    synchronous_s: float


@dataclass(frozen=True)
class Machine:
    """Micro-measurements of one model on this machine, in seconds.

    Attributes:
        expert_bytes: size of one expert.
        prefill_s, decode_s: one iteration with everything resident.
        expert_s: one expert's arithmetic for one token.
        cold_s: what a pause in a layer costs beyond its length, because CPU caches are cold afterwards.
        systems: by policy; contains "on-demand".
        links: by the nominal time of a load.
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

    If the time that the policy adds to a layer, beyond what on-demand loading adds, covers its search, the search is modelled as
    part of inference: missing experts are already loading while inference searches at the gate. A longer search runs
    concurrently.

    Args:
        machine: its micro-measurements.
        policy: name of the system.
        load_s: nominal load time that selects the link, in seconds.
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
        """Durations of every event of a block; the policy's own work was measured, so `read_bytes` is ignored."""
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
        """The search at the start of an iteration, the search at a gate, and the other time added to a layer, in seconds. For a
        synchronous system the search is part of the time added to a layer."""
        system = self._system
        if system.is_synchronous:
            return 0.0, 0.0, system.added_s
        if not self._searches_itself:
            return system.start_s, system.gate_s, system.added_s
        gate_s = max(0.0, self._beyond_accounting_s - system.start_s / num_layers)
        return system.start_s, gate_s, self.machine.systems["on-demand"].added_s
