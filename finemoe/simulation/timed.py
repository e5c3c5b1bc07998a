"""A replay's caches in virtual time: prepares the clockwork's inputs from a trace, a policy and a testbed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from finemoe.cache.capacity import slots_per_device
from finemoe.cache.placement import owners_of
from finemoe.cache.rules import rule_named
from finemoe.chunks import CHUNK_BYTES
from finemoe.compiling import failures_raised
from finemoe.errors import FinemoeError
from finemoe.policies.base import Policy
from finemoe.policies.block import Block
from finemoe.report import Report
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.clockwork import Clockwork
from finemoe.simulation.cost import CostModel
from finemoe.simulation.events import contexts_of, tokens_of
from finemoe.simulation.kernel_inputs import Durations, Events
from finemoe.simulation.machine import AFTER_LAYER, AT_GATE, BESIDE
from finemoe.simulation.tally import Tally
from finemoe.traces import RoutingTrace
from finemoe.units import format_bytes


def waits_of(policy: Policy) -> int:
    """When inference waits for a policy's prefetches."""
    if not policy.is_synchronous:
        return BESIDE
    return AFTER_LAYER if policy.lookahead or policy.loads_whole_layers else AT_GATE


def prefetch_time_s(cost: CostModel) -> float:
    """Prefetch of one expert, chunk by chunk."""
    return cost.prefetch(CHUNK_BYTES)


class Pace(Protocol):
    """The speed of a machine for one model and policy.

    Attributes:
        num_devices; expert_bytes: of one expert; load_s, prefetch_s: transfer of one expert on demand, and as a prefetch in
            chunks; chunk_s: one chunk; wake_s, resume_s, hand_over_s, hits_first: see Clockwork. hidden_size: h of the model.
    """

    @property
    def num_devices(self) -> int: ...

    @property
    def expert_bytes(self) -> int: ...

    @property
    def load_s(self) -> float: ...

    @property
    def prefetch_s(self) -> float: ...

    @property
    def chunk_s(self) -> float: ...

    @property
    def wake_s(self) -> float: ...

    @property
    def resume_s(self) -> float: ...

    @property
    def hand_over_s(self) -> float: ...

    @property
    def hits_first(self) -> bool: ...

    @property
    def hidden_size(self) -> int: ...

    def durations(
        self, trace: RoutingTrace, block: Block, begins: np.ndarray, demanded: np.ndarray, read_bytes: np.ndarray
    ) -> Durations:
        """For every event of a block. begins, demanded: its demanded sets. read_bytes: read by the policy's own work (`ask`)."""


@dataclass(frozen=True)
class ModelledPace:
    """The speed according to a cost model.

    Args:
        cost: the model on its testbed. arrangement: the served requests.
    """

    cost: CostModel
    arrangement: Arrangement
    wake_s = resume_s = 0.0  # a device waits for an event, so no thread has to wake up

    @property
    def num_devices(self) -> int:
        return self.cost.testbed.devices

    @property
    def expert_bytes(self) -> int:
        return self.cost.size.expert_bytes

    @property
    def load_s(self) -> float:
        return self.cost.load()

    @property
    def prefetch_s(self) -> float:
        return prefetch_time_s(self.cost)

    @property
    def chunk_s(self) -> float:
        testbed = self.cost.testbed
        whole_s = testbed.link_latency_s + testbed.chunk_overhead_s + CHUNK_BYTES / testbed.load_bytes_per_s
        return min(self.prefetch_s, whole_s)

    @property
    def hand_over_s(self) -> float:
        return self.cost.testbed.hand_over_s

    @property
    def hits_first(self) -> bool:
        return bool(self.cost.testbed.hits_first)

    @property
    def hidden_size(self) -> int:
        return self.cost.size.hidden_size

    def require_room(self, expert_memory: float | int | str) -> None:
        """Refuse a cache that does not fit in addition to the model's other weights.

        Raises:
            FinemoeError: it does not fit.
        """
        size, testbed = self.cost.size, self.cost.testbed
        if not self.cost.fits(expert_memory):
            needed = format_bytes(self.cost.fullest_bytes(expert_memory))
            raise FinemoeError(
                f"{size.name} would take {needed} on {'the first device of ' if testbed.devices > 1 else ''}{testbed.title}, "
                f"which has {format_bytes(testbed.memory_bytes)}: lower expert_memory"
            )

    def durations(
        self, trace: RoutingTrace, block: Block, begins: np.ndarray, demanded: np.ndarray, read_bytes: np.ndarray
    ) -> Durations:
        """For every event of a block."""
        num_layers, num_rows = trace.num_layers, np.diff(block.starts).astype(float)
        contexts = contexts_of(self.arrangement.contexts, block).astype(float)
        kept = np.where(
            block.is_prefill, num_rows, contexts
        )  # a prompt reads its own tokens' keys and values once, a decoded token those of its context
        before = self.cost.before_experts(num_rows, contexts, kept)
        after = np.repeat(self.cost.exchange(num_rows), num_layers)
        after[num_layers - 1 :: num_layers] += self.cost.head()
        search, work_s = np.zeros((block.num_iterations, num_layers, 2)), self.cost.search(read_bytes)
        search[:, 0, 0], search[:, :, 1] = work_s[:, 0], work_s[:, 1:]
        return Durations(
            before=np.repeat(before, num_layers),
            expert=self.cost.expert(tokens_of(trace, block, begins, demanded).astype(float)),
            after=after,
            search=search.reshape(-1),
            earliest=np.repeat(self.arrangement.arrivals_s[block.requests], num_layers),
        )


class TimedCache:
    """The caches and links of a machine under one rule, at one size, with their counts and times.

    Args:
        eviction: the rule's name. first_held: experts (flat ids), of which as many of the first ones as fit are resident from the
            start without counting as loads; only for one device.
    Attributes:
        needs_future: whether the rule needs to know the future (`foresee`).
    """

    def __init__(
        self,
        trace: RoutingTrace,
        policy: Policy,
        expert_memory: float | int | str,
        eviction: str,
        pace: Pace,
        first_held: Sequence[int] | np.ndarray = (),
    ) -> None:
        num_layers, num_experts, num_devices = trace.num_layers, trace.num_experts, pace.num_devices
        memory = 1.0 if policy.holds_everything else expert_memory
        slots = slots_per_device(memory, pace.expert_bytes, num_layers * num_experts, num_devices)
        rule, self._eviction = rule_named(eviction, is_replay=True), eviction
        self.needs_future = rule.needs_future
        self._expert_bytes, self._memory_bytes = pace.expert_bytes, slots * num_devices * pace.expert_bytes
        owners = owners_of([num_experts] * num_layers, num_devices)
        of_link = pace.load_s, pace.chunk_s, waits_of(policy), pace.wake_s, pace.prefetch_s
        self._clockwork = Clockwork(
            rule, owners, num_devices, slots, *of_link, pace.hand_over_s, pace.hits_first, pace.resume_s, policy.least_gain
        )
        self._tally = Tally(trace)
        if policy.holds_everything:
            first_held = np.arange(num_layers * num_experts)
        self._clockwork.hold(np.asarray(first_held, dtype=np.int64)[: slots * num_devices])

    def foresee(self, first_uses: np.ndarray) -> None:
        """Set when every expert is demanded first, [L·J] event numbers."""
        self._clockwork.foresee(first_uses)

    def run(self, block: Block, events: Events, durations: Durations | None) -> None:
        """Simulate a block of events."""
        assert durations is not None
        with failures_raised(f"eviction rule {self._eviction!r}"):
            outcome = self._clockwork.run(events, durations)
        per_iteration = (block.num_iterations, -1)
        begins, ends = outcome.starts.reshape(per_iteration)[:, 0], outcome.ends.reshape(per_iteration)[:, -1]
        self._tally.add(block, events.begins, outcome.counts)
        self._tally.add_times(block, ends - begins, outcome.stalls.reshape(per_iteration).sum(axis=1))

    def report(self, policy: str, recall: float) -> Report:
        """The counts and times so far."""
        counts = (self._clockwork.num_useful, self._clockwork.num_unused)
        return self._tally.report(policy, self._eviction, self._memory_bytes, self._expert_bytes, recall, *counts)
