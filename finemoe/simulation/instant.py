"""A replay's caches with loads that take no time: exact accounting of hits and loads (DESIGN 4).

An expert is absent or resident, and nothing is late. State is kept between blocks of events, which bounds memory for traces of
any length.
"""

import numpy as np

from finemoe.cache import kernels, prefetch_queue, state, streaming
from finemoe.cache.capacity import slots_per_device
from finemoe.cache.kernels import admit, complete, demand, foresee, hear, release, start_iteration
from finemoe.cache.placement import owners_of
from finemoe.cache.prefetch_queue import NOTHING, post_prefetches, take_most_urgent
from finemoe.cache.rules import rule_named
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import ABSENT, DEMAND_LOADS, PREFETCH_LOADS, RESIDENT, STREAMS, USEFUL, WASTED, empty_state, hold
from finemoe.cache.streaming import start_streaming, stream_ahead
from finemoe.compiling import borrowing, failures_raised
from finemoe.policies.base import Policy
from finemoe.policies.block import Block
from finemoe.report import Report
from finemoe.simulation.kernel_inputs import Durations, Events
from finemoe.simulation.tally import Tally
from finemoe.stale_kernels import forget_stale_kernels
from finemoe.traces import RoutingTrace

forget_stale_kernels(__file__, *(one.__file__ for one in (kernels, prefetch_queue, state, streaming)))


class InstantCache:
    """The caches of all devices under one rule, at one size, with their counts.

    Args:
        eviction: the rule's name.
    Attributes:
        needs_future: whether the rule needs to know the future (`foresee`).
    """

    def __init__(
        self,
        trace: RoutingTrace,
        policy: Policy,
        expert_memory: float | int | str,
        eviction: str,
        num_devices: int,
        expert_bytes: int | None,
    ) -> None:
        num_layers, num_experts = trace.num_layers, trace.num_experts
        memory = 1.0 if policy.holds_everything else expert_memory
        slots = slots_per_device(memory, expert_bytes, num_layers * num_experts, num_devices)
        rule, self._eviction = rule_named(eviction, is_replay=True), eviction
        self.needs_future = rule.needs_future
        self._expert_bytes, self._memory_slots = expert_bytes or 1, slots * num_devices
        self._owners = owners_of([num_experts] * num_layers, num_devices).reshape(-1)
        sizes = num_layers, num_experts, slots
        self._devices = [InstantDevice(rule, *sizes, policy.least_gain, self._owners == d) for d in range(num_devices)]
        self._tally = Tally(trace)
        if policy.holds_everything:
            for number, device in enumerate(self._devices):
                device.hold(np.flatnonzero(self._owners == number))

    def foresee(self, first_uses: np.ndarray) -> None:
        """Set when every expert is demanded first, [L·J] event numbers."""
        for device in self._devices:
            device.foresee(first_uses)

    def run(self, block: Block, events: Events, durations: Durations | None = None) -> None:
        """Simulate a block of events; nothing takes time."""
        is_one = len(self._devices) == 1
        parts = [events] if is_one else [events.part(self._owners == number) for number in range(len(self._devices))]
        with failures_raised(f"eviction rule {self._eviction!r}"):
            outcome = np.sum([device.run(part) for device, part in zip(self._devices, parts, strict=True)], axis=0)
        self._tally.add(block, events.begins, np.insert(outcome, 1, 0, axis=1))  # nothing is late

    def report(self, policy: str, recall: float) -> Report:
        """The counts so far."""
        useful = sum(device.num_useful for device in self._devices)
        unused = sum(device.num_unused for device in self._devices)
        memory_bytes = self._memory_slots * self._expert_bytes
        return self._tally.report(policy, self._eviction, memory_bytes, self._expert_bytes, recall, useful, unused)


class InstantDevice:
    """One device's cache under one eviction rule.

    Args:
        num_layers, num_experts: L, J. num_slots: capacity in experts. least_gain: see policies.base.Policy.
        is_mine: [L·J] which experts belong to this device; None for all.
    """

    def __init__(
        self,
        rule: EvictionRule,
        num_layers: int,
        num_experts: int,
        num_slots: int,
        least_gain: float | None = None,
        is_mine: np.ndarray | None = None,
    ) -> None:
        self._pointers, own = rule.pointers(), rule.own(num_experts)
        self._arrays = empty_state(num_layers, num_experts, num_slots, own, True, least_gain)
        if is_mine is not None:
            self._arrays.is_local[:] = is_mine
        self._found = np.zeros(num_experts, dtype=np.uint8)

    def hold(self, experts: np.ndarray) -> None:
        """Put experts (flat ids) into free slots before the run; this does not count as loads."""
        hold(self._arrays, experts)

    def foresee(self, first_uses: np.ndarray) -> None:
        """Set when every expert is demanded first, [L·J] event numbers."""
        self._arrays.stats.next_use[:] = first_uses

    def run(self, events: Events) -> np.ndarray:
        """Simulate a block of events.

        Returns:
            [E, 4]: hits, loads on demand, prefetch loads, and prefetched experts evicted unused, for each event.
        """
        outcome = np.zeros((len(events.layers), 4), dtype=np.int64)
        run(self._arrays, events, self._found, *self._pointers, outcome)
        return outcome

    @property
    def num_useful(self) -> int:
        """Prefetched experts that were demanded while resident."""
        return int(self._arrays.counts[USEFUL])

    @property
    def num_unused(self) -> int:
        """Prefetched experts that are resident and have not been demanded."""
        return int(np.count_nonzero(self._arrays.undemanded))


@borrowing
def run(cache, events, found, weigh, visit, outcome):  # type: ignore[no-untyped-def]
    """The loop over events."""
    for event in range(events.layers.shape[0]):
        layer, span = events.layers[event], slice(events.begins[event], events.begins[event + 1])
        experts, counts = events.demanded[span], cache.counts
        demand_loads, prefetch_loads, wasted = counts[DEMAND_LOADS], counts[PREFETCH_LOADS], counts[WASTED]
        if events.is_start[event]:
            start_iteration(cache)
            if len(events.streams) and events.streams[event]:
                start_streaming(cache)
                _load_queue(cache, weigh)
            _listen(cache, events, 2 * event, weigh)
        demand(cache, layer, experts, found, visit)
        for index in range(experts.shape[0]):
            outcome[event, 0] += found[index] == RESIDENT
        foresee(cache, layer, experts, events.next_use[span])
        if _load_missing(cache, layer, experts, weigh) and counts[STREAMS]:
            stream_ahead(cache)
            _load_queue(cache, weigh)
        _listen(cache, events, 2 * event + 1, weigh)
        outcome[event, 1] = counts[DEMAND_LOADS] - demand_loads
        outcome[event, 2] = counts[PREFETCH_LOADS] - prefetch_loads
        outcome[event, 3] = counts[WASTED] - wasted


@borrowing
def _listen(cache, events, moment, weigh):  # type: ignore[no-untyped-def]
    """Process the predictions of a moment and load everything that they request, unless the iteration is streamed."""
    for update in range(events.update_begins[moment], events.update_begins[moment + 1]):
        hear(cache, events.update_layers[update], events.rows[events.update_rows[update]])
    if cache.counts[STREAMS]:
        return
    post_prefetches(cache, events.prefetches[events.prefetch_begins[moment] : events.prefetch_begins[moment + 1]])
    _load_queue(cache, weigh)


@borrowing
def _load_queue(cache, weigh):  # type: ignore[no-untyped-def]
    """Load everything that is queued, the most urgent expert first."""
    flat = take_most_urgent(cache)
    while flat != NOTHING:
        _load(cache, flat, True, weigh)
        flat = take_most_urgent(cache)


@borrowing
def _load_missing(cache, layer, experts, weigh):  # type: ignore[no-untyped-def]
    """Load on demand, in ascending order; experts of a set larger than the cache take turns (DESIGN 4). Returns whether the set
    fits."""
    base, fits = layer * cache.stats.num_experts, True
    for expert in experts:
        if cache.presence[base + expert] == ABSENT and not _load(cache, base + expert, False, weigh):
            fits = False
            break
    for position in range(experts.shape[0]):
        flat = base + experts[position]
        if cache.presence[flat] != ABSENT:
            continue
        release(cache, layer, experts[:position])
        while not _load(cache, flat, False, weigh):
            _give_up_last(cache, base, experts[position + 1 :])
        cache.running[flat] = True  # also if it had given up its slot: it stays until the layer is done
    return fits


@borrowing
def _load(cache, flat, is_prefetch, weigh):  # type: ignore[no-untyped-def]
    """Load an absent expert; returns False if every slot holds an expert that must stay."""
    slot, _, _ = admit(cache, flat, is_prefetch, weigh)
    if slot >= 0:
        complete(cache, flat)
    return slot >= 0


@borrowing
def _give_up_last(cache, base, ahead):  # type: ignore[no-untyped-def]
    """Allow the hit that is needed last to be evicted."""
    for place in range(ahead.shape[0] - 1, -1, -1):
        if cache.presence[base + ahead[place]] == RESIDENT:
            cache.running[base + ahead[place]] = False
            break
