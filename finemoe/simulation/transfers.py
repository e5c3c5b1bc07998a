"""A device's link in virtual time, compiled: prefetches when it is free, demanded loads at once (see clockwork.py).

The machine's `ready` holds when each demanded expert of the running layer is resident: ABSENT_YET while it has no slot, HAS_SLOT
until its load is put on the link.
"""

import numpy as np

from finemoe.cache import kernels, prefetch_queue, state
from finemoe.cache.kernels import admit, complete, release
from finemoe.cache.prefetch_queue import NOTHING, take_most_urgent
from finemoe.cache.state import RESIDENT, device_of
from finemoe.compiling import borrowing
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, kernels.__file__, prefetch_queue.__file__, state.__file__)
ABSENT_YET, HAS_SLOT = -1.0, -2.0


@borrowing
def advance(machine, d, until):  # type: ignore[no-untyped-def]
    """Simulate a device's link up to a given time."""
    link_s, rest_s, flying = machine.link_s, machine.rest_s, machine.flying
    while link_s[d] < until:
        if flying[d] >= 0:
            step = min(rest_s[d], until - link_s[d])
            is_done = step == rest_s[d]
            link_s[d] += step
            rest_s[d] -= step
            if is_done:
                _land(machine, d)
        elif not _take_off(machine, d):
            link_s[d] = until


@borrowing
def drain(machine, d):  # type: ignore[no-untyped-def]
    """Let a device's link load everything in its queue; returns when it is idle."""
    while True:
        if machine.flying[d] >= 0:
            _finish_flight(machine, d)
        elif not _take_off(machine, d):
            return machine.link_s[d]


@borrowing
def _finish_flight(machine, d):  # type: ignore[no-untyped-def]
    machine.link_s[d] += machine.rest_s[d]
    _land(machine, d)


@borrowing
def _land(machine, d):  # type: ignore[no-untyped-def]
    flat = machine.flying[d]
    machine.flying[d], machine.rest_s[d] = NOTHING, 0.0
    complete(device_of(machine.caches, d), flat)


@borrowing
def _take_off(machine, d):  # type: ignore[no-untyped-def]
    """Start the most urgent prefetch for which a slot is available; False if none is left."""
    cache = device_of(machine.caches, d)
    flat = take_most_urgent(cache)
    while flat != NOTHING:
        slot, _, _ = admit(cache, flat, True, machine.weigh)
        if slot >= 0:
            machine.flying[d], machine.rest_s[d] = flat, machine.prefetch_s
            return True
        flat = take_most_urgent(cache)
    return False


@borrowing
def load_missing(machine, d, base, mine, places):  # type: ignore[no-untyped-def]
    """Start on-demand loads on one device, as many as get a slot at the gate; returns their number. A prefetch in flight pauses
    after its chunk; it continues first if it is demanded too (late).

    Args:
        base: flat id of the layer's first expert. mine, places: the device's part of the demanded set, and its places in it.
    """
    cache, ready, link_s = device_of(machine.caches, d), machine.ready, machine.link_s
    late, count = NOTHING, 0
    for index in range(mine.shape[0]):
        if machine.flying[d] == base + mine[index]:
            late = places[index]
    for index in range(mine.shape[0]):
        if ready[places[index]] == ABSENT_YET and places[index] != late:
            slot, _, _ = admit(cache, base + mine[index], False, machine.weigh)
            if slot < 0:
                break
            complete(cache, base + mine[index])
            ready[places[index]] = HAS_SLOT
            count += 1
    if count:
        finish_chunk(machine, d)
    if late >= 0 and machine.flying[d] < 0:  # the chunk was its last
        ready[late] = link_s[d]
    for place in places:
        if ready[place] == HAS_SLOT:
            link_s[d] += machine.load_s
            ready[place] = link_s[d]
    if late >= 0 and machine.flying[d] >= 0:
        _finish_flight(machine, d)
        ready[late] = link_s[d]
    return count


@borrowing
def finish_chunk(machine, d):  # type: ignore[no-untyped-def]
    """Finish the chunk in flight, before anything else can use the link."""
    chunks = (machine.prefetch_s - machine.rest_s[d]) / machine.chunk_s  # number moved so far
    if machine.flying[d] < 0 or abs(chunks - np.round(chunks)) < 1e-9:
        return
    rest = min(machine.rest_s[d], (np.ceil(chunks) - chunks) * machine.chunk_s)
    is_done = rest == machine.rest_s[d]
    machine.link_s[d] += rest
    machine.rest_s[d] -= rest
    if is_done:
        _land(machine, d)


@borrowing
def load_in_turn(machine, d, index, layer, now, experts):  # type: ignore[no-untyped-def]
    """Load a demanded expert that got no slot at the gate because the set is larger than the cache: evict experts that are
    already computed, or wait for the prefetch in flight, or give up the hit that is needed last (DESIGN 4)."""
    cache, base = device_of(machine.caches, d), layer * machine.caches.stats.num_experts
    flat = base + experts[index]
    release(cache, layer, experts[:index])
    advance(machine, d, now)
    slot, _, _ = admit(cache, flat, False, machine.weigh)
    while slot < 0:
        if machine.flying[d] >= 0:
            _finish_flight(machine, d)
        else:
            _give_up_last(machine, d, cache, base, index, experts)
        slot, _, _ = admit(cache, flat, False, machine.weigh)
    finish_chunk(machine, d)
    machine.link_s[d] = max(machine.link_s[d], now) + machine.load_s
    machine.ready[index] = machine.link_s[d]
    complete(cache, flat)
    cache.running[flat] = True  # also if it had given up its slot: it stays until the layer is done


@borrowing
def _give_up_last(machine, d, cache, base, index, experts):  # type: ignore[no-untyped-def]
    for last in range(experts.shape[0] - 1, index, -1):
        other = base + experts[last]
        if machine.owners[other] == d and cache.presence[other] == RESIDENT and cache.running[other]:
            cache.running[other] = False
            machine.ready[last] = ABSENT_YET
            break
