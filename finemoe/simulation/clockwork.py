"""The expert cache and its links in virtual time, compiled: layer events in order, under the live engine's rules (DESIGN 5, 6).

Every device has its own slots and its own link. A link moves one expert at a time. When it is free, it takes the prefetch with
the highest priority, probability / (layer - running layer); a prefetch is dropped once its layer runs. A missing demanded expert
is loaded at once: it waits for the chunk in flight, and prefetching pauses until all demanded experts are resident. Experts are
computed on their own device as soon as they are resident: in ascending order, or in order of arrival. Nothing is random: equal
inputs give equal times.
"""

from dataclasses import dataclass

import numpy as np

from finemoe.cache import kernels, prefetch_queue, state, streaming
from finemoe.cache.kernels import demand, foresee, hear, start_iteration
from finemoe.cache.prefetch_queue import post_prefetches
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.state import LOADING, PREFETCH_LOADS, RESIDENT, STREAMS, USEFUL, WASTED, device_of
from finemoe.cache.streaming import start_streaming, stream_ahead
from finemoe.compiling import borrowing
from finemoe.simulation import machine as machines
from finemoe.simulation import transfers
from finemoe.simulation.kernel_inputs import Durations, Events
from finemoe.simulation.machine import AFTER_LAYER, AT_GATE, BESIDE, hold_on_devices, idle_machine
from finemoe.simulation.transfers import ABSENT_YET, advance, drain, load_in_turn, load_missing
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = kernels, prefetch_queue, state, streaming, machines, transfers
forget_stale_kernels(__file__, *(module.__file__ for module in _SOURCES))


@dataclass(frozen=True)
class Outcome:
    """The results of a block of E events.

    Attributes:
        counts: [E, 5] hits, late, loads on demand, prefetch loads, and prefetched experts evicted unused.
        starts, ends: [E] when the layer started and when its output was complete. stalls: [E] time waiting for weights.
    """

    counts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    stalls: np.ndarray


class Clockwork:
    """Caches and links of all devices under one eviction rule.

    Args:
        owners: [L, J] each expert's device. num_slots: number of slots of every device.
        load_s: on-demand load of one expert over its link, including latency. chunk_s: one chunk of a prefetch, for which a
            demanded load may have to wait. prefetch_s: prefetch of one expert, chunk by chunk; None: as on demand.
        waits: BESIDE, AT_GATE or AFTER_LAYER. wake_s, resume_s: time to resume after waiting for a demanded load, and for
            prefetches.
        hand_over_s: inference itself does policy work that is shorter than this, unless earlier work of the policy is still
            running in parallel. hits_first: a device computes its experts in order of arrival, ascending among equals, unless
            one must wait for another's slot; otherwise always in ascending order. least_gain: see policies.base.Policy.
    """

    def __init__(
        self,
        rule: EvictionRule,
        owners: np.ndarray,
        num_devices: int,
        num_slots: int,
        load_s: float,
        chunk_s: float,
        waits: int = BESIDE,
        wake_s: float = 0.0,
        prefetch_s: float | None = None,
        hand_over_s: float = 0.0,
        hits_first: bool = False,
        resume_s: float = 0.0,
        least_gain: float | None = None,
    ) -> None:
        prefetch_s = load_s if prefetch_s is None else prefetch_s
        seconds = tuple(map(float, (load_s, prefetch_s, chunk_s, wake_s, resume_s, hand_over_s)))
        self._machine = idle_machine(rule, owners, num_devices, num_slots, waits, bool(hits_first), least_gain, *seconds)

    def hold(self, experts: np.ndarray) -> None:
        """Put experts (flat ids) into free slots of their devices before the run; this does not count as loads."""
        hold_on_devices(self._machine, experts)

    def foresee(self, first_uses: np.ndarray) -> None:
        """Set when every expert is demanded first, [L·J] event numbers."""
        self._machine.caches.stats.next_use[:] = first_uses

    def run(self, events: Events, durations: Durations) -> Outcome:
        """Simulate a block of events."""
        num_events = len(events.layers)
        counts, times = np.zeros((num_events, 5), dtype=np.int64), np.zeros((num_events, 3))
        said, ends = np.empty((2 * num_events, 2)), np.zeros(2, dtype=np.int64)
        run(self._machine, events, durations, said, ends, counts, times)
        return Outcome(counts, times[:, 0], times[:, 1], times[:, 2])

    @property
    def num_useful(self) -> int:
        """Prefetched experts that were demanded while resident or in flight."""
        return int(self._machine.caches.counts[:, USEFUL].sum())

    @property
    def num_unused(self) -> int:
        """Prefetched experts that hold a slot and have not been demanded."""
        return int(np.count_nonzero(self._machine.caches.undemanded))


@borrowing
def run(machine, events, durations, said, ends, counts, times):  # type: ignore[no-untyped-def]
    """The loop over events. Answers of the policy are queued until its work is done: `said` holds (time, moment), `ends` the
    bounds of the queue."""
    for event in range(events.layers.shape[0]):
        ahead, wasted = _total(machine, PREFETCH_LOADS), _total(machine, WASTED)
        if events.is_start[event]:
            _start_iteration(machine, events, event, durations, said, ends)
        begin = now = machine.clock[0]
        machine.clock[2] = 0.0
        if events.is_start[event]:
            now = _publish(machine, events, durations, 2 * event, begin, machine.waits != BESIDE, said, ends)
        gate = now + durations.before[event]
        _pass_time(machine, events, gate, said, ends)
        _access(machine, events, event, gate, counts)
        start = gate
        if machine.waits != AFTER_LAYER:
            start = _publish(machine, events, durations, 2 * event + 1, gate, machine.waits == AT_GATE, said, ends)
        end, longest = _compute(machine, events, event, durations, start, counts)
        end += durations.after[event]
        if machine.waits == AFTER_LAYER:
            end = _publish(machine, events, durations, 2 * event + 1, end, True, said, ends)
        machine.clock[0] = end
        counts[event, 3] = _total(machine, PREFETCH_LOADS) - ahead
        counts[event, 4] = _total(machine, WASTED) - wasted
        times[event, 0], times[event, 1] = begin, end
        own = machine.clock[2]  # this is not waiting for weights
        times[event, 2] = end - begin - durations.before[event] - longest - durations.after[event] - own
    _hear_all(machine, events, said, ends)


@borrowing
def _total(machine, count):  # type: ignore[no-untyped-def]
    total = 0
    for d in range(machine.link_s.shape[0]):
        total += machine.caches.counts[d, count]
    return total


@borrowing
def _greatest(values):  # type: ignore[no-untyped-def]
    greatest = values[0]
    for value in values:
        greatest = max(greatest, value)
    return greatest


@borrowing
def _start_iteration(machine, events, event, durations, said, ends):  # type: ignore[no-untyped-def]
    """Forget what earlier iterations requested and waited for. Answers that arrive after their iteration still count as the
    policy's expectation."""
    now = max(machine.clock[0], durations.earliest[event])
    machine.clock[0] = now
    _pass_time(machine, events, now, said, ends)
    _hear_all(machine, events, said, ends)
    for d in range(machine.link_s.shape[0]):
        start_iteration(device_of(machine.caches, d))
        if len(events.streams) and events.streams[event]:
            start_streaming(device_of(machine.caches, d))


@borrowing
def _publish(machine, events, durations, moment, now, waits, said, ends):  # type: ignore[no-untyped-def]
    """Notify the policy, which answers once its own work is done; returns when inference continues."""
    search_s = durations.search[moment]
    is_at_once = machine.clock[1] <= now and search_s < machine.hand_over_s
    answered = max(now, machine.clock[1]) + search_s
    machine.clock[1] = answered
    said[ends[1], 0], said[ends[1], 1] = answered, moment
    ends[1] += 1
    if not (waits or is_at_once):
        return now
    machine.clock[2] += search_s
    _pass_time(machine, events, answered, said, ends)
    if not waits:
        return answered
    loaded = answered
    for d in range(machine.link_s.shape[0]):
        loaded = max(loaded, drain(machine, d))
    return loaded + machine.resume_s if loaded > answered else answered


@borrowing
def _pass_time(machine, events, until, said, ends):  # type: ignore[no-untyped-def]
    """Let links work and answers arrive until a given time."""
    while ends[0] < ends[1] and said[ends[0], 0] <= until:
        for d in range(machine.link_s.shape[0]):
            advance(machine, d, said[ends[0], 0])
        moment = int(said[ends[0], 1])
        _hear(machine, events, moment)
        _post(machine, events.prefetches[events.prefetch_begins[moment] : events.prefetch_begins[moment + 1]])
        ends[0] += 1
    for d in range(machine.link_s.shape[0]):
        advance(machine, d, until)


@borrowing
def _hear_all(machine, events, said, ends):  # type: ignore[no-untyped-def]
    """Process all remaining answers without loading anything for them."""
    while ends[0] < ends[1]:
        _hear(machine, events, int(said[ends[0], 1]))
        ends[0] += 1


@borrowing
def _hear(machine, events, moment):  # type: ignore[no-untyped-def]
    for update in range(events.update_begins[moment], events.update_begins[moment + 1]):
        for d in range(machine.link_s.shape[0]):
            hear(device_of(machine.caches, d), events.update_layers[update], events.rows[events.update_rows[update]])


@borrowing
def _post(machine, wanted):  # type: ignore[no-untyped-def]
    for index in range(wanted.shape[0]):
        cache = device_of(machine.caches, machine.owners[wanted[index]])
        if not cache.counts[STREAMS]:
            post_prefetches(cache, wanted[index : index + 1])


@borrowing
def _access(machine, events, event, gate, counts):  # type: ignore[no-untyped-def]
    """Classify the demanded set at the gate and start loading what is missing."""
    layer, begin = events.layers[event], events.begins[event]
    experts, next_use = events.demanded[begin : events.begins[event + 1]], events.next_use[begin : events.begins[event + 1]]
    base = layer * machine.caches.stats.num_experts
    for d in range(machine.link_s.shape[0]):
        cache, count = device_of(machine.caches, d), 0
        for index in range(experts.shape[0]):
            if machine.owners[base + experts[index]] == d:
                machine.mine[count], machine.places[count] = experts[index], index
                count += 1
        mine, places = machine.mine[:count], machine.places[:count]
        demand(cache, layer, mine, machine.found, machine.visit)
        foresee(cache, layer, experts, next_use)
        for index in range(count):
            counts[event, 0] += machine.found[index] == RESIDENT
            counts[event, 1] += machine.found[index] == LOADING
            machine.ready[places[index]] = gate if machine.found[index] == RESIDENT else ABSENT_YET
        counts[event, 2] += load_missing(machine, d, base, mine, places)
        if cache.counts[STREAMS]:
            stream_ahead(cache)


@borrowing
def _compute(machine, events, event, durations, start, counts):  # type: ignore[no-untyped-def]
    """Compute experts on every device as they arrive; returns when all are done, and the work of the slowest device."""
    layer, begin, ends_s, work_s = events.layers[event], events.begins[event], machine.ends_s, machine.work_s
    experts = events.demanded[begin : events.begins[event + 1]]
    for d in range(machine.link_s.shape[0]):
        now, own = start, 0.0
        for index in machine.places[: _line_up(machine, d, layer, experts)]:
            if machine.ready[index] < 0:
                load_in_turn(machine, d, index, layer, now, experts)
                counts[event, 2] += 1
            if machine.ready[index] > now:  # waits for the expert, then wakes up
                now = machine.ready[index] + machine.wake_s
            now += durations.expert[begin + index]
            own += durations.expert[begin + index]
        ends_s[d], work_s[d] = now, own
    return max(start, _greatest(ends_s)), _greatest(work_s)


@borrowing
def _line_up(machine, d, layer, experts):  # type: ignore[no-untyped-def]
    """Fill `places` with one device's part of the demanded set in its order of computation; returns the number of experts."""
    base, places, count, is_sorted = layer * machine.caches.stats.num_experts, machine.places, 0, machine.hits_first
    for index in range(experts.shape[0]):
        if machine.owners[base + experts[index]] == d:
            is_sorted = is_sorted and machine.ready[index] >= 0
            places[count] = index
            count += 1
    for end in range(1, count if is_sorted else 0):  # a stable insertion sort, since almost nothing is out of order
        place, at = places[end], end
        while at and machine.ready[places[at - 1]] > machine.ready[place]:
            places[at] = places[at - 1]
            at -= 1
        places[at] = place
    return count
