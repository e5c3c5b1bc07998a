"""A replay's caches where loads take no time: exact accounting of hits and loads (DESIGN 4)."""

import numpy as np

from finemoe.cache.capacity import slots_per_device
from finemoe.cache.compiled import CompiledCache, Events
from finemoe.cache.placement import owners_of
from finemoe.policies.base import Policy
from finemoe.report import Report
from finemoe.simulation.clockwork import Durations
from finemoe.simulation.events import Iterations
from finemoe.simulation.tally import Tally
from finemoe.traces import RoutingTrace


class InstantCache:
    """The caches of all devices under one rule, at one size, with their counts."""

    def __init__(
        self,
        trace: RoutingTrace,
        policy: Policy,
        expert_memory: float | int | str,
        rule: str,
        num_devices: int,
        expert_bytes: int | None,
    ) -> None:
        num_layers, num_experts = trace.num_layers, trace.num_experts
        memory = 1.0 if policy.holds_everything else expert_memory
        slots = slots_per_device(memory, expert_bytes, num_layers * num_experts, num_devices)
        self.rule, self._expert_bytes, self._memory_slots = rule, expert_bytes or 1, slots * num_devices
        self._owners = owners_of([num_experts] * num_layers, num_devices).reshape(-1)
        self._caches = [CompiledCache(rule, num_layers, num_experts, slots) for _ in range(num_devices)]
        self._tally = Tally(trace)
        if policy.holds_everything:
            for device, cache in enumerate(self._caches):
                cache.hold(np.flatnonzero(self._owners == device))

    def foresee(self, first_uses: np.ndarray) -> None:
        """When every expert is demanded first, [L·J] event numbers."""
        for cache in self._caches:
            cache.foresee(first_uses)

    def run(self, block: Iterations, events: Events, durations: Durations | None = None) -> None:
        """Go through a block of events; nothing takes time."""
        if len(self._caches) == 1:
            outcome = self._caches[0].run(events)
        else:
            parts = [events.part(self._owners == device) for device in range(len(self._caches))]
            outcome = np.sum([cache.run(part) for cache, part in zip(self._caches, parts, strict=True)], axis=0)
        self._tally.add(block, events.begins, np.insert(outcome, 1, 0, axis=1))  # nothing is late

    def report(self, policy: str, recall: float) -> Report:
        """The counts so far."""
        useful = sum(cache.num_useful for cache in self._caches)
        unused = sum(cache.num_unused_resident for cache in self._caches)
        memory_bytes = self._memory_slots * self._expert_bytes
        return self._tally.report(policy, self.rule, memory_bytes, self._expert_bytes, recall, useful, unused)
