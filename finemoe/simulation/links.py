"""The compiled part of virtual time: what happens to caches and links from one layer event to the next (see clockwork.py)."""

from typing import NamedTuple

import numpy as np

from finemoe.cache import compiled
from finemoe.cache.compiled import (
    AWAITING,
    DEMAND_LOADS,
    EXPECTED,
    LAST_LAYER,
    LOADING,
    NEXT_USE,
    PREFETCH_LOADS,
    RESIDENT,
    RULE_CODES,
    RUNNING,
    UNDEMANDED,
    USEFUL,
    WASTED,
    borrowing,
    take_slot,
    update_expected,
    visit,
)
from finemoe.cache.stale import forget_stale_kernels
from finemoe.compiling import njit

forget_stale_kernels(__file__, compiled.__file__)
BESIDE, AT_GATE, AFTER_LAYER = 0, 1, 2  # inference does not wait for prefetches; waits before the layer computes; after it
NOTHING, _BELADY = -1, RULE_CODES["belady"]
_ABSENT, _HAS_SLOT = -1.0, -2.0  # instead of the time when a demanded expert is there


class State(NamedTuple):
    """Everything that changes, and what it is indexed by; D devices of S slots, N = L·J experts by flat id.

    Attributes:
        rule, num_experts, waits, load_s, prefetch_s, chunk_s, wake_s: settings. owners, layers: [N] of each expert.
        ints, floats, flags, turns, scalars, held: per device what cache.compiled keeps for one.
        link_s: [D] up to when a link's work is known. rest_s: [D] what its transfer in flight still takes.
        flying: [D] the expert in flight, or -1. pending, num_pending: [D, N] and [D] prefetches that wait, as asked for.
        urgency: [N] probability of what is pending, else -1. clock: [2] when the last layer ended, when the matcher is free.
        ready: [J] when each demanded expert of the running layer is there, by its place in the set; -1 while it has no slot.
    """

    rule: int
    num_experts: int
    waits: int
    load_s: float
    prefetch_s: float
    chunk_s: float
    wake_s: float
    owners: np.ndarray
    layers: np.ndarray
    ints: np.ndarray
    floats: np.ndarray
    flags: np.ndarray
    turns: np.ndarray
    scalars: np.ndarray
    held: np.ndarray
    link_s: np.ndarray
    rest_s: np.ndarray
    flying: np.ndarray
    pending: np.ndarray
    num_pending: np.ndarray
    urgency: np.ndarray
    clock: np.ndarray
    ready: np.ndarray


class Plan(NamedTuple):
    """A block of `Events` with its `Durations`."""

    layers: np.ndarray
    is_start: np.ndarray
    begins: np.ndarray
    demanded: np.ndarray
    next_use: np.ndarray
    update_begins: np.ndarray
    update_layers: np.ndarray
    update_rows: np.ndarray
    rows: np.ndarray
    prefetch_begins: np.ndarray
    prefetches: np.ndarray
    before: np.ndarray
    expert: np.ndarray
    after: np.ndarray
    search: np.ndarray
    earliest: np.ndarray


@njit(cache=True)
def run(state, plan, counts, times):  # type: ignore[no-untyped-def]
    """The loop over events. What the policy answers waits in a queue until its work is done: `said` holds (time, moment)."""
    said, ends = np.empty((2 * plan.layers.shape[0], 2)), np.zeros(2, dtype=np.int64)  # and where the queue begins and ends
    for event in range(plan.layers.shape[0]):
        layer = plan.layers[event]
        ahead, wasted = state.scalars[:, PREFETCH_LOADS].sum(), state.scalars[:, WASTED].sum()
        if plan.is_start[event]:
            _start_iteration(state, plan, event, said, ends)
        begin = now = state.clock[0]
        if plan.is_start[event]:
            now = _publish(state, plan, 2 * event, -1, begin, state.waits != BESIDE, said, ends)
        gate = now + plan.before[event]
        _pass_time(state, plan, gate, layer - 1, said, ends)
        experts = plan.demanded[plan.begins[event] : plan.begins[event + 1]]
        _access(state, plan, event, layer, gate, experts, counts)
        start = gate
        if state.waits != AFTER_LAYER:
            start = _publish(state, plan, 2 * event + 1, layer, gate, state.waits == AT_GATE, said, ends)
        end, longest = _compute(state, plan, event, layer, start, experts, counts)
        end += plan.after[event]
        if state.waits == AFTER_LAYER:
            end = _publish(state, plan, 2 * event + 1, layer, end, True, said, ends)
        state.clock[0] = end
        counts[event, 3] = state.scalars[:, PREFETCH_LOADS].sum() - ahead
        counts[event, 4] = state.scalars[:, WASTED].sum() - wasted
        times[event, 0], times[event, 1] = begin, end
        own = 0.0  # the policy's work that inference waited for is no waiting for weights
        if state.waits != BESIDE:
            own = plan.search[2 * event + 1] + (plan.search[2 * event] if plan.is_start[event] else 0.0)
        times[event, 2] = end - begin - plan.before[event] - longest - plan.after[event] - own
    _pass_time(state, plan, np.inf, state.turns.shape[1], said, ends)


@njit(cache=True)
def _start_iteration(state, plan, event, said, ends):  # type: ignore[no-untyped-def]
    """What earlier iterations asked for is forgotten, and what they were waiting for."""
    now = max(state.clock[0], plan.earliest[event])
    state.clock[0] = now
    _pass_time(state, plan, now, state.turns.shape[1], said, ends)
    while ends[0] < ends[1]:  # answers that come too late for their iteration are still what the policy expects
        _hear(state, plan, int(said[ends[0], 1]), state.turns.shape[1], False)
        ends[0] += 1
    for d in range(state.held.shape[0]):
        for place in range(state.num_pending[d]):
            state.urgency[state.pending[d, place]] = -1.0
        state.num_pending[d] = 0
        state.flags[d, AWAITING] = False
        state.flags[d, RUNNING] = False


@njit(cache=True)
def _publish(state, plan, moment, layer, now, waits, said, ends):  # type: ignore[no-untyped-def]
    """The policy is told something; it answers once its own work is done. Returns when inference goes on."""
    answered = max(now, state.clock[1]) + plan.search[moment]
    state.clock[1] = answered
    said[ends[1], 0], said[ends[1], 1] = answered, moment
    ends[1] += 1
    if not waits:
        return now
    _pass_time(state, plan, answered, layer, said, ends)
    for d in range(state.held.shape[0]):
        answered = max(answered, _drain(state, d, layer))
    return answered


@njit(cache=True)
def _pass_time(state, plan, until, layer, said, ends):  # type: ignore[no-untyped-def]
    """Links work and answers arrive up to a time (without end: answers only), while `layer` is the last whose gate has spoken."""
    while ends[0] < ends[1] and said[ends[0], 0] <= until:
        if until < np.inf:
            for d in range(state.held.shape[0]):
                _advance(state, d, said[ends[0], 0], layer)
        _hear(state, plan, int(said[ends[0], 1]), layer, until < np.inf)
        ends[0] += 1
    if until < np.inf:
        for d in range(state.held.shape[0]):
            _advance(state, d, until, layer)


@borrowing
def _hear(state, plan, moment, layer, may_load):  # type: ignore[no-untyped-def]
    for d in range(state.held.shape[0]):
        update_expected(moment, layer, state.num_experts, state.rule, plan.update_begins, plan.update_layers, plan.update_rows,
                        plan.rows, state.floats[d])  # fmt: skip
    if may_load:
        _post(state, plan.prefetches[plan.prefetch_begins[moment] : plan.prefetch_begins[moment + 1]], layer)


@borrowing
def _post(state, wanted, layer):  # type: ignore[no-untyped-def]
    """Queue prefetches at their devices; what is here or on its way is awaited instead."""
    owners, layers, urgency, pending, flags = state.owners, state.layers, state.urgency, state.pending, state.flags
    num_pending, floats = state.num_pending, state.floats
    earliest = _earliest(state, layer)
    for flat in wanted:
        d = owners[flat]
        if layers[flat] < earliest:
            continue
        if flags[d, RESIDENT, flat] or flags[d, LOADING, flat]:
            if layers[flat] > layer:
                flags[d, AWAITING, flat] = True
            continue
        if urgency[flat] < 0:
            pending[d, num_pending[d]] = flat
            num_pending[d] += 1
        urgency[flat] = floats[d, EXPECTED, flat]


@borrowing
def _earliest(state, layer):  # type: ignore[no-untyped-def]
    """The first layer that may still be fetched: after a layer its own other experts may be, too (whole layers)."""
    return layer + (state.waits != AFTER_LAYER)


@borrowing
def _advance(state, d, until, layer):  # type: ignore[no-untyped-def]
    """Let a device's link work up to a time, while `layer` is the last whose gate has spoken."""
    link_s, rest_s, flying = state.link_s, state.rest_s, state.flying
    while link_s[d] < until:
        if flying[d] >= 0:
            step = min(rest_s[d], until - link_s[d])
            is_done = step == rest_s[d]
            link_s[d] += step
            rest_s[d] -= step
            if is_done:
                _land(flying, rest_s, state.flags, d)
        elif not _take_off(state, d, layer):
            link_s[d] = until


@borrowing
def _drain(state, d, layer):  # type: ignore[no-untyped-def]
    """Let a device's link load all that is pending; returns when it is idle."""
    link_s, rest_s, flying, flags = state.link_s, state.rest_s, state.flying, state.flags
    while True:
        if flying[d] >= 0:
            link_s[d] += rest_s[d]
            _land(flying, rest_s, flags, d)
        elif not _take_off(state, d, layer):
            return link_s[d]


@borrowing
def _land(flying, rest_s, flags, d):  # type: ignore[no-untyped-def]
    flat = flying[d]
    flying[d], rest_s[d] = NOTHING, 0.0
    flags[d, LOADING, flat] = False
    flags[d, RESIDENT, flat] = True


@borrowing
def _take_off(state, d, layer):  # type: ignore[no-untyped-def]
    """Begin the most urgent prefetch that a slot can be had for; False when none is left."""
    while state.num_pending[d] > 0:
        flat = _most_urgent(state, d, layer)
        if flat < 0:
            return False
        if _take_slot(state, d, flat, layer):
            flags = state.flags[d]
            flags[UNDEMANDED, flat] = flags[LOADING, flat] = True
            flags[AWAITING, flat] = state.layers[flat] != layer
            state.scalars[d, PREFETCH_LOADS] += 1
            state.flying[d], state.rest_s[d] = flat, state.prefetch_s
            return True
    return False


@borrowing
def _most_urgent(state, d, layer):  # type: ignore[no-untyped-def]
    """Take the pending prefetch of highest p / (l - l_now) out of the queue (section 4.5); what is stale or here by now leaves
    it too."""
    layers, urgency, pending, flags = state.layers, state.urgency, state.pending[d], state.flags[d]
    kept, best, best_priority = 0, NOTHING, -1.0
    earliest = _earliest(state, layer)
    for place in range(state.num_pending[d]):
        flat = pending[place]
        if layers[flat] < earliest or flags[RESIDENT, flat] or flags[LOADING, flat]:
            urgency[flat] = -1.0
            continue
        pending[kept] = flat
        kept += 1
        priority = urgency[flat] / max(layers[flat] - layer, 1)
        if priority > best_priority:
            best, best_priority = flat, priority
    if best >= 0:
        place = 0
        while pending[place] != best:
            place += 1
        kept -= 1
        for later in range(place, kept):
            pending[later] = pending[later + 1]
        urgency[best] = -1.0
    state.num_pending[d] = kept
    return best


@borrowing
def _take_slot(state, d, flat, layer):  # type: ignore[no-untyped-def]
    return take_slot(flat, layer, state.num_experts, state.rule, state.ints[d], state.floats[d], state.flags[d], state.turns[d],
                     state.scalars[d], state.held[d])  # fmt: skip


@njit(cache=True)
def _access(state, plan, event, layer, gate, experts, counts):  # type: ignore[no-untyped-def]
    """The demanded set is judged at the gate, and what is missing begins to load."""
    owners, flags, scalars, ready = state.owners, state.flags, state.scalars, state.ready
    base = layer * state.num_experts
    for d in range(flags.shape[0]):
        last = max(scalars[d, LAST_LAYER], 0) * state.num_experts  # whose experts may be marked as running
        for expert in range(state.num_experts):
            flags[d, RUNNING, last + expert] = False
            flags[d, AWAITING, base + expert] = False
    for index in range(experts.shape[0]):
        flat = base + experts[index]
        d = owners[flat]
        is_here, is_coming = flags[d, RESIDENT, flat], flags[d, LOADING, flat]
        counts[event, 0] += is_here
        counts[event, 1] += is_coming
        scalars[d, USEFUL] += (is_here or is_coming) and flags[d, UNDEMANDED, flat]
        flags[d, UNDEMANDED, flat] = False
        flags[d, RUNNING, flat] = True
        ready[index] = gate if is_here else _ABSENT
    for d in range(flags.shape[0]):
        mine = experts[owners[base + experts] == d]
        visit(layer, state.num_experts, mine, state.rule, state.ints[d], state.floats[d], state.turns[d], scalars[d])
        if state.rule == _BELADY:
            for index in range(experts.shape[0]):
                state.ints[d, NEXT_USE, base + experts[index]] = plan.next_use[plan.begins[event] + index]
        counts[event, 2] += _load_missing(state, d, layer, experts)


@borrowing
def _load_missing(state, d, layer, experts):  # type: ignore[no-untyped-def]
    """On-demand loads of one device, as many as get a slot at the gate; returns how many. A prefetch in flight pauses after its
    chunk, and continues first if it is demanded too (late)."""
    owners, ready, flying, link_s, rest_s = state.owners, state.ready, state.flying, state.link_s, state.rest_s
    base, count = layer * state.num_experts, 0
    late = NOTHING
    for index in range(experts.shape[0]):
        flat = base + experts[index]
        if flying[d] == flat:
            late = index
        elif owners[flat] == d and ready[index] == _ABSENT:
            if not _take_slot(state, d, flat, layer):
                break
            ready[index] = _HAS_SLOT
            state.flags[d, RESIDENT, flat] = True
            count += 1
    if count:
        _finish_chunk(state, d)
    if late >= 0 and flying[d] < 0:  # that was its last chunk
        ready[late] = link_s[d]
    for index in range(experts.shape[0]):
        if owners[base + experts[index]] == d and ready[index] == _HAS_SLOT:
            link_s[d] += state.load_s
            ready[index] = link_s[d]
    if late >= 0 and flying[d] >= 0:
        link_s[d] += rest_s[d]
        ready[late] = link_s[d]
        _land(flying, rest_s, state.flags, d)
    state.scalars[d, DEMAND_LOADS] += count
    return count


@borrowing
def _finish_chunk(state, d):  # type: ignore[no-untyped-def]
    """The chunk that is being moved ends before anything else can go over the link."""
    chunks = (state.prefetch_s - state.rest_s[d]) / state.chunk_s  # moved so far
    if state.flying[d] < 0 or abs(chunks - np.round(chunks)) < 1e-9:
        return
    rest = min(state.rest_s[d], (np.ceil(chunks) - chunks) * state.chunk_s)
    is_done = rest == state.rest_s[d]
    state.link_s[d] += rest
    state.rest_s[d] -= rest
    if is_done:
        _land(state.flying, state.rest_s, state.flags, d)


@njit(cache=True)
def _compute(state, plan, event, layer, start, experts, counts):  # type: ignore[no-untyped-def]
    """Every device computes its experts in ascending order as they come; returns when all are done, and the longest device's own
    work."""
    owners, ready, durations = state.owners, state.ready, plan.expert[plan.begins[event] : plan.begins[event + 1]]
    base, num_devices = layer * state.num_experts, state.held.shape[0]
    ends, work = np.full(num_devices, start), np.zeros(num_devices)
    for index in range(experts.shape[0]):
        flat = base + experts[index]
        d = owners[flat]
        if ready[index] < 0:
            _make_room(state, d, index, layer, ends[d], experts)
            counts[event, 2] += 1
        if ready[index] > ends[d]:  # waits for it, and wakes up
            ends[d] = ready[index] + state.wake_s
        ends[d] += durations[index]
        work[d] += durations[index]
    return max(start, ends.max()), work.max()


@borrowing
def _make_room(state, d, index, layer, now, experts):  # type: ignore[no-untyped-def]
    """The set exceeds the cache: those already computed may go, or the prefetch in flight is waited for, or the hit needed last
    is given up (DESIGN 4)."""
    base, flat = layer * state.num_experts, layer * state.num_experts + experts[index]
    for used in range(index):
        state.flags[d, RUNNING, base + experts[used]] = False
    _advance(state, d, now, layer)
    while not _take_slot(state, d, flat, layer):
        if state.flying[d] >= 0:
            state.link_s[d] += state.rest_s[d]
            _land(state.flying, state.rest_s, state.flags, d)
            continue
        for last in range(experts.shape[0] - 1, index, -1):
            other = base + experts[last]
            if state.owners[other] == d and state.flags[d, RESIDENT, other] and state.flags[d, RUNNING, other]:
                state.flags[d, RUNNING, other] = False
                state.ready[last] = _ABSENT
                break
    _finish_chunk(state, d)
    state.link_s[d] = max(state.link_s[d], now) + state.load_s
    state.ready[index] = state.link_s[d]
    state.flags[d, RESIDENT, flat] = True
    state.scalars[d, DEMAND_LOADS] += 1
