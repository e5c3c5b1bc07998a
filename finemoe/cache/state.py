"""The state of one device's expert cache: arrays that compiled transitions change (`cache.kernels`, `cache.prefetch_queue`).

Experts are identified by flat id, layer·J + expert, of which there are N = L·J; a slot is a number below S.
"""

from typing import Any, NamedTuple

import numpy as np

from finemoe.compiling import borrowing

ABSENT, LOADING, RESIDENT = 0, 1, 2
# Places in `CacheState.counts`: the number of slots in use; the running layer; whether `worth` is up to date, except for one
# slot; that slot; the minimum number of layers between a prefetch and the running layer; the number of queued prefetches; the
# minimum gain of a prefetch over the expert it evicts, in thousandths, or ANY_GAIN; whether the iteration is streamed (see
# `streaming`); and totals so far.
HELD, LAYER, IS_WEIGHED, UNWEIGHED, AHEAD, NUM_PENDING, NUM_RESIDENT, LEAST_GAIN, STREAMS = range(9)
ADMITTED, EVICTED, DEMAND_LOADS, PREFETCH_LOADS, WASTED, USEFUL, NUM_COUNTS = range(9, 16)
ANY_GAIN = -1
TIME, PASS, LAST_LAYER = range(3)  # places in `Statistics.clock`


class Statistics(NamedTuple):
    """What eviction rules can read about a device's experts.

    Attributes:
        num_experts: J. layer_of: [N] each expert's layer. frequency: [N] 1 + all demand visits so far, kept across evictions.
        last_visit: [N] event of the last visit, 0 before there is any. last_pass, last_turn: [N] number of the pass through the
            layers, and of the turn of the expert's layer, at the last visit; -1 before.
        turns: [L] how often each layer ran. clock: number of events so far; number of passes so far (a pass starts when a layer
            runs that does not come after the last one); the layer that ran last, or -1.
        expected: [N] float32 probability in the last prediction of the expert's layer, 1/J before there is any.
        foretold: [L] the turn of the layer, counted from 0, that this prediction is for; -1 before.
        next_use: [N] number of the next event that demands it; only a replay knows it.
        own: [R, N] float64 data of the rule itself.
    """

    num_experts: int
    layer_of: np.ndarray
    frequency: np.ndarray
    last_visit: np.ndarray
    last_pass: np.ndarray
    last_turn: np.ndarray
    turns: np.ndarray
    clock: np.ndarray
    expected: np.ndarray
    foretold: np.ndarray
    next_use: np.ndarray
    own: np.ndarray


class CacheState(NamedTuple):
    """One device's cache; or those of D devices, each array with a leading axis [D] (see `device_of`).

    Attributes:
        presence: [N] uint8 ABSENT, LOADING or RESIDENT. slot_of: [N] its slot, or -1. held: [S] the expert in each slot.
        undemanded: [N] prefetched and not demanded since. awaiting: [N] prefetched for a layer that has not run yet.
        running: [N] demanded by the running layer and still needed.
        worth: [S] worth of each held expert according to the rule. counts: [NUM_COUNTS] see the constants.
        pending: [N] queued prefetches in the order of their requests. urgency: [N] probability of queued experts, else -1.
        is_local: [N] whether the expert exists, on this device, in a layer that may run; only streaming reads it.
        stats: what the rule reads.
    """

    presence: np.ndarray
    slot_of: np.ndarray
    held: np.ndarray
    undemanded: np.ndarray
    awaiting: np.ndarray
    running: np.ndarray
    worth: np.ndarray
    counts: np.ndarray
    pending: np.ndarray
    urgency: np.ndarray
    is_local: np.ndarray
    stats: Statistics


def empty_state(
    num_layers: int,
    num_experts: int,
    num_slots: int,
    own: tuple[float, ...] = (),
    may_fetch_running: bool = False,
    least_gain: float | None = None,
    num_devices: int | None = None,
) -> CacheState:
    """A cache in its initial state.

    Args:
        own: initial value of each of the rule's own rows. may_fetch_running: whether prefetches may still load other experts of
            the running layer. least_gain: see policies.base.Policy. num_devices: None for one device's cache, without the leading
            axis.
    """
    lead = () if num_devices is None else (num_devices,)
    experts, slots = (*lead, num_layers * num_experts), (*lead, num_slots)
    counts = np.zeros((*lead, NUM_COUNTS), dtype=np.int64)
    counts[..., LAYER], counts[..., UNWEIGHED], counts[..., AHEAD] = -1, -1, not may_fetch_running
    counts[..., LEAST_GAIN] = ANY_GAIN if least_gain is None else round(1000 * least_gain)
    clock = np.zeros((*lead, 3), dtype=np.int64)
    clock[..., LAST_LAYER] = -1
    rows = np.zeros((*lead, len(own), experts[-1]))
    rows[:] = np.array(own)[:, None]
    statistics = Statistics(
        num_experts=num_experts,
        layer_of=np.broadcast_to(np.repeat(np.arange(num_layers), num_experts), experts).copy(),
        frequency=np.ones(experts, dtype=np.int64),
        last_visit=np.zeros(experts, dtype=np.int64),
        last_pass=np.full(experts, -1),
        last_turn=np.full(experts, -1),
        turns=np.zeros((*lead, num_layers), dtype=np.int64),
        clock=clock,
        expected=np.full(experts, 1.0 / num_experts, dtype=np.float32),
        foretold=np.full((*lead, num_layers), -1),
        next_use=np.zeros(experts, dtype=np.int64),
        own=rows,
    )
    return CacheState(
        presence=np.zeros(experts, dtype=np.uint8),
        slot_of=np.full(experts, -1),
        held=np.zeros(slots, dtype=np.int64),
        undemanded=np.zeros(experts, dtype=np.bool_),
        awaiting=np.zeros(experts, dtype=np.bool_),
        running=np.zeros(experts, dtype=np.bool_),
        worth=np.zeros(slots),
        counts=counts,
        pending=np.zeros(experts, dtype=np.int64),
        urgency=np.full(experts, -1.0),
        is_local=np.ones(experts, dtype=np.bool_),
        stats=statistics,
    )


@borrowing
def device_of(caches, device):  # type: ignore[no-untyped-def]
    """One device's cache out of several."""
    stats = caches.stats
    return CacheState(
        caches.presence[device],
        caches.slot_of[device],
        caches.held[device],
        caches.undemanded[device],
        caches.awaiting[device],
        caches.running[device],
        caches.worth[device],
        caches.counts[device],
        caches.pending[device],
        caches.urgency[device],
        caches.is_local[device],
        Statistics(
            stats.num_experts,
            stats.layer_of[device],
            stats.frequency[device],
            stats.last_visit[device],
            stats.last_pass[device],
            stats.last_turn[device],
            stats.turns[device],
            stats.clock[device],
            stats.expected[device],
            stats.foretold[device],
            stats.next_use[device],
            stats.own[device],
        ),
    )


def hold(cache: CacheState, experts: np.ndarray, device: Any = ...) -> None:
    """Put experts (flat ids) into a device's free slots before the run; this does not count as loads."""
    cache.held[device][: len(experts)] = experts
    cache.slot_of[device][experts] = np.arange(len(experts))
    cache.presence[device][experts] = RESIDENT
    cache.counts[device][[HELD, NUM_RESIDENT]] = len(experts)
