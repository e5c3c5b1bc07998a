"""What inference and a link's worker do on a `Board`, each in one call, outside the interpreter's lock.

So nobody waits for the interpreter to move an expert, and an interrupt strikes before or after a transition, never inside one. What
blocks returns after `most_ns`, so that the interpreter may look for signals.

Experts go by flat id. A mark is what a link gave for a copy (see `link.Link`).
"""

import numpy as np

from finemoe import native
from finemoe.cache import addresses, kernels, prefetch_queue, state
from finemoe.cache.addresses import cache_at
from finemoe.cache.prefetch_queue import NOTHING
from finemoe.cache.stale import forget_stale_kernels
from finemoe.cache.state import ABSENT, HELD, NUM_PENDING, NUM_RESIDENT, RESIDENT, empty_state
from finemoe.compiling import njit
from finemoe.native import function_types, int64_at, lock, now_ns, unlock, wait, wait_until, wake_all
from finemoe.report import DEMANDED, NUM_MOVED, PREFETCHED, WASTED
from finemoe.runtime import board as at

forget_stale_kernels(__file__, *(one.__file__ for one in (native, addresses, kernels, prefetch_queue, state, at)))
FAILED = -2  # the eviction rule, or the link
CLOSED = -3
NO_SLOT = -1
MUST_READ = -1  # a mark: the record lies on disk, and the interpreter must bring it

_STATS, _NUMBERS = empty_state(1, 1, 1).stats, np.zeros(1, dtype=np.int64)
_weigh_at, _ = function_types(None, _STATS, _NUMBERS, np.zeros(1))
_visit_at, _ = function_types(None, _STATS, 1, _NUMBERS)
_, _copy_at = function_types(1, 1, 1, 1, 1, 1)
_, _wait_at = function_types(1, 1, 1, 1)
_compiled = njit(cache=True, nogil=True)
PATIENCE_NS = 50_000_000  # after which the interpreter looks for signals


@njit(cache=True)
def _cache(board):  # type: ignore[no-untyped-def]
    return cache_at(int64_at(board[at.CACHE], board[at.NUM_CACHE]))


@_compiled
def start_iteration(board, number):  # type: ignore[no-untyped-def]
    """A new iteration, of this number: see the cache's `start_iteration`."""
    lock(board[at.MUTEX])
    board[at.ITERATION] = number
    kernels.start_iteration(_cache(board))
    unlock(board[at.MUTEX])


@_compiled
def post(board, iteration, layer, probabilities, experts):  # type: ignore[no-untyped-def]
    """A layer's distribution is predicted, [J], and these of its experts are wanted, [n] ids; what is of another iteration is only
    heard.

    Returns:
        Whether prefetches wait that are of this iteration.
    """
    cache = _cache(board)
    lock(board[at.MUTEX])
    kernels.hear(cache, layer, probabilities)
    is_of_now = iteration == board[at.ITERATION]
    if is_of_now and len(experts):
        prefetch_queue.post_prefetches(cache, experts + layer * cache.stats.num_experts)
        if cache.counts[NUM_PENDING]:
            wake_all(board[at.WORK])
    is_wanted = is_of_now and cache.counts[NUM_PENDING] > 0
    unlock(board[at.MUTEX])
    return is_wanted


@_compiled
def demand(board, layer, selected, told):  # type: ignore[no-untyped-def]
    """A layer's gate has spoken: its set is accessed, missing experts get slots in ascending order as long as there are any, and
    their copies begin. Until that is done no chunk of a prefetch does.

    Args:
        selected: [m] ids of the layer's experts, in any order and repeated; J or more is none.
        told: [4, J], filled with the set in ascending order; where each was; its slot, or NO_SLOT; and the mark of its copy, if it
            was missing.
    Returns:
        (n, how many are missing, whether the caller must go on with what has a slot and no proper mark, and `end_demand` then).
    """
    cache = _cache(board)
    num_experts = cache.stats.num_experts
    experts, found, slots, marks = told[0], told[1], told[2], told[3]
    n = _distinct(selected, num_experts, experts)
    where = np.empty(n, dtype=np.uint8)
    lock(board[at.MUTEX])
    _visit(board, cache, layer, experts[:n])
    kernels.access(cache, layer, experts[:n], where)
    num_missing = (where == ABSENT).sum()
    board[at.DEMANDING] += num_missing > 0
    unlock(board[at.MUTEX])
    is_open, goes_on = True, False
    for index in range(n):
        flat = layer * num_experts + experts[index]
        found[index], slots[index] = where[index], cache.slot_of[flat]
        if where[index] == ABSENT and is_open:
            slots[index], marks[index] = _start_load(board, cache, flat)
            is_open = slots[index] >= 0 and marks[index] != FAILED
            goes_on |= marks[index] < 0
    if num_missing and not goes_on:
        _end_demand(board)
    return n, num_missing, goes_on


@njit(cache=True)
def _distinct(selected, num_experts, experts):  # type: ignore[no-untyped-def]
    """Fill `experts` with the ids below J among these, ascending; returns how many."""
    is_wanted = np.zeros(num_experts, dtype=np.bool_)
    for expert in selected:
        if expert < num_experts:
            is_wanted[expert] = True
    n = 0
    for expert in range(num_experts):
        if is_wanted[expert]:
            experts[n] = expert
            n += 1
    return n


@_compiled
def use(board, layer, selected):  # type: ignore[no-untyped-def]
    """A layer's set is accessed while everything is here for good: no rule has anything to learn, but what was prefetched is unused
    no longer; selected: as in `demand`. Returns how many experts it has."""
    cache = _cache(board)
    num_experts = cache.stats.num_experts
    experts = np.empty(num_experts, dtype=np.int64)
    n = _distinct(selected, num_experts, experts)
    for expert in experts[:n]:
        cache.undemanded[layer * num_experts + expert] = False
    return n


@_compiled
def end_demand(board):  # type: ignore[no-untyped-def]
    """What a layer demanded is under way."""
    _end_demand(board)


@_compiled
def _end_demand(board):  # type: ignore[no-untyped-def]
    lock(board[at.MUTEX])
    board[at.DEMANDING] = max(0, board[at.DEMANDING] - 1)
    wake_all(board[at.WORK])
    unlock(board[at.MUTEX])


@_compiled
def load_late(board, flat):  # type: ignore[no-untyped-def]
    """Give a demanded expert a slot that found none at first, and begin its copy.

    Returns:
        (slot or NO_SLOT, mark).
    """
    return _start_load(board, _cache(board), flat)


@_compiled
def _start_load(board, cache, flat):  # type: ignore[no-untyped-def]
    lock(board[at.MUTEX])
    slot = _admit(board, cache, flat, False)
    unlock(board[at.MUTEX])
    if slot < 0:
        return slot, np.int64(FAILED if slot == FAILED else 0)
    source = int64_at(board[at.RECORDS], len(cache.presence))[flat]
    return slot, _start_copy(board, cache, flat, slot, source) if source else np.int64(MUST_READ)


@_compiled
def start_copy(board, flat, slot, source):  # type: ignore[no-untyped-def]
    """Begin to copy a demanded expert's record from an address; returns the mark, or FAILED."""
    return _start_copy(board, _cache(board), flat, slot, source)


@_compiled
def _start_copy(board, cache, flat, slot, source):  # type: ignore[no-untyped-def]
    size, fence = int64_at(board[at.SIZES], len(cache.presence))[flat], int64_at(board[at.FENCES], len(cache.held))[slot]
    sink = board[at.SLOTS] + slot * board[at.SLOT_BYTES]
    mark = _copy_at(board[at.COPY])(board[at.LINK], sink, source, size, fence)
    return mark if mark >= 0 else np.int64(FAILED)


@_compiled
def _visit(board, cache, layer, experts):  # type: ignore[no-untyped-def]
    try:
        _visit_at(board[at.VISIT])(cache.stats, layer, experts)
    except Exception:  # noqa: BLE001 - the only kind there is in compiled code
        board[at.HAS_RULE_FAILED] = 1


@_compiled
def _admit(board, cache, flat, is_prefetch):  # type: ignore[no-untyped-def]
    """A slot for an absent expert, NO_SLOT or FAILED; with the lock."""
    slot, evicted, is_wasted = np.int64(FAILED), np.int64(0), False
    try:
        slot, evicted, is_wasted = kernels.admit(cache, flat, is_prefetch, _weigh_at(board[at.WEIGH]))
    except Exception:  # noqa: BLE001 - as above
        board[at.HAS_RULE_FAILED] = 1
    if slot >= 0:
        sizes, moved = int64_at(board[at.SIZES], len(cache.presence)), int64_at(board[at.MOVED_BYTES], NUM_MOVED)
        moved[PREFETCHED if is_prefetch else DEMANDED] += sizes[flat]
        if is_wasted:
            moved[WASTED] += sizes[evicted]
    return slot


@_compiled
def land(board, flat, mark, must_wait, most_ns):  # type: ignore[no-untyped-def]
    """A demanded expert's copy is over, or compute will wait for it; then it is resident.

    Args:
        must_wait: whether the calling thread waits for the copy.
    Returns:
        1 if so, 0 if it goes on after `most_ns`, or FAILED.
    """
    if must_wait:
        state_now = _wait_at(board[at.WAIT])(board[at.LINK], mark, most_ns)
        if state_now <= 0:
            return state_now if state_now == 0 else np.int64(FAILED)
    cache = _cache(board)
    lock(board[at.MUTEX])
    kernels.complete(cache, flat)
    wake_all(board[at.CHANGED])
    unlock(board[at.MUTEX])
    return np.int64(1)


@_compiled
def wait_resident(board, flat, most_ns):  # type: ignore[no-untyped-def]
    """Wait for an expert that somebody else brings, for so long at most; returns whether it is there."""
    cache, end_ns = _cache(board), now_ns() + most_ns
    lock(board[at.MUTEX])
    while cache.presence[flat] != RESIDENT and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.CHANGED], board[at.MUTEX], end_ns)
    is_there = cache.presence[flat] == RESIDENT
    unlock(board[at.MUTEX])
    return is_there


@_compiled
def reserve(board, flat, may_evict, is_counted):  # type: ignore[no-untyped-def]
    """A slot for an expert that is to be brought before it is demanded; NO_SLOT if it is here already, or no slot is to be had;
    FAILED.

    Args:
        may_evict: whether somebody may go for it. is_counted: whether it counts as prefetched.
    """
    cache, slot = _cache(board), np.int64(NO_SLOT)
    lock(board[at.MUTEX])
    if cache.presence[flat] == ABSENT and (may_evict or cache.counts[HELD] < len(cache.held)):
        if is_counted:
            slot = _admit(board, cache, flat, True)
        else:
            slot = kernels.give_slot(cache, flat, False)[0]
    unlock(board[at.MUTEX])
    return slot


@_compiled
def _bring(board, cache, flat, slot, source):  # type: ignore[no-untyped-def]
    """Copy an expert that nobody demands yet into its slot, chunk by chunk, and wait for it; what is demanded meanwhile goes first.

    Returns:
        1, FAILED or CLOSED.
    """
    size, fence = int64_at(board[at.SIZES], len(cache.presence))[flat], int64_at(board[at.FENCES], len(cache.held))[slot]
    sink, marks = board[at.SLOTS] + slot * board[at.SLOT_BYTES], int64_at(board[at.MARKS], at.MOST_IN_FLIGHT)
    begun, over, start = 0, 0, 0
    while start < size:
        if begun - over == board[at.IN_FLIGHT]:
            found = _outlast(board, marks[over % at.MOST_IN_FLIGHT])
            if found < 0:
                return found
            over += 1
        _let_demands_pass(board)
        chunk = min(board[at.CHUNK_BYTES], size - start)
        mark = _copy_at(board[at.COPY])(board[at.LINK], sink + start, source + start, chunk, fence)
        if mark < 0:
            return np.int64(FAILED)
        marks[begun % at.MOST_IN_FLIGHT] = mark
        begun += 1
        start += chunk
    while over < begun:
        found = _outlast(board, marks[over % at.MOST_IN_FLIGHT])
        if found < 0:
            return found
        over += 1
    return np.int64(1)


@_compiled
def _outlast(board, mark):  # type: ignore[no-untyped-def]
    """Wait for a copy: 1, FAILED, or CLOSED where the memory was closed meanwhile."""
    found = np.int64(0)
    while found == 0:
        found = _wait_at(board[at.WAIT])(board[at.LINK], mark, PATIENCE_NS)
        if found == 0 and board[at.IS_CLOSED]:
            return np.int64(CLOSED)
    return np.int64(FAILED if found < 0 else 1)


@_compiled
def let_demands_pass(board, most_ns):  # type: ignore[no-untyped-def]
    """Wait as long as a layer demands loads, for so long at most; returns whether none does."""
    end_ns = now_ns() + most_ns
    lock(board[at.MUTEX])
    while board[at.DEMANDING] and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.WORK], board[at.MUTEX], end_ns)
    is_over = board[at.IS_CLOSED] or not board[at.DEMANDING]
    unlock(board[at.MUTEX])
    return is_over


@_compiled
def _let_demands_pass(board):  # type: ignore[no-untyped-def]
    lock(board[at.MUTEX])
    while board[at.DEMANDING] and not board[at.IS_CLOSED]:
        wait(board[at.WORK], board[at.MUTEX])
    unlock(board[at.MUTEX])


@_compiled
def settle(board, flat):  # type: ignore[no-untyped-def]
    """An expert that was brought is here."""
    lock(board[at.MUTEX])
    _settle(board, _cache(board), flat)
    unlock(board[at.MUTEX])


@_compiled
def _settle(board, cache, flat):  # type: ignore[no-untyped-def]
    kernels.complete(cache, flat)
    if board[at.COPIER] == flat:
        board[at.COPIER] = NOTHING
    wake_all(board[at.CHANGED])


@_compiled
def take_next(board):  # type: ignore[no-untyped-def]
    """The most urgent prefetch, in line: it has its slot (`SLOT`), and is the caller's to bring and settle.

    Returns:
        Its flat id, NOTHING where none waits, or FAILED.
    """
    lock(board[at.MUTEX])
    flat = _take_next(board, _cache(board))
    unlock(board[at.MUTEX])
    return flat


@_compiled
def _take_next(board, cache):  # type: ignore[no-untyped-def]
    while cache.counts[NUM_PENDING]:
        flat = prefetch_queue.take_most_urgent(cache)
        if flat == NOTHING:
            break
        slot = _admit(board, cache, flat, True)
        if slot == FAILED:
            return np.int64(FAILED)
        if slot >= 0:
            board[at.COPIER], board[at.SLOT] = flat, slot
            return np.int64(flat)
    return np.int64(NOTHING)


@_compiled
def serve(board):  # type: ignore[no-untyped-def]
    """The worker's whole life: load what waits, most urgent first, whenever nothing is demanded.

    Returns:
        CLOSED, FAILED, or the flat id of an expert whose record must be read from disk: it has its slot, and is the caller's to bring
        and settle before it comes back here.
    """
    cache = _cache(board)
    records = int64_at(board[at.RECORDS], len(cache.presence))
    native.set_timer_slack(1)
    while True:
        lock(board[at.MUTEX])
        while not board[at.IS_CLOSED] and (board[at.DEMANDING] or not cache.counts[NUM_PENDING]):
            wait(board[at.WORK], board[at.MUTEX])
        is_closed = board[at.IS_CLOSED]
        flat = np.int64(CLOSED) if is_closed else _take_next(board, cache)
        if flat == NOTHING:
            wake_all(board[at.CHANGED])
        unlock(board[at.MUTEX])
        if flat == NOTHING:
            continue
        if flat < 0 or not records[flat]:
            return flat
        begin_ns = now_ns()
        found = _bring(board, cache, flat, board[at.SLOT], records[flat])
        if found < 0:
            return found
        lock(board[at.MUTEX])
        _settle(board, cache, flat)
        _note(board, flat, begin_ns)
        unlock(board[at.MUTEX])


@_compiled
def _note(board, flat, begin_ns):  # type: ignore[no-untyped-def]
    place = board[at.SPAN]
    if place < board[at.NUM_SPANS]:
        span = int64_at(board[at.SPANS] + place * 24, 3)
        span[0], span[1], span[2] = flat, begin_ns, now_ns()
        board[at.SPAN] = place + 1


@_compiled
def note(board, flat, begin_ns):  # type: ignore[no-untyped-def]
    """An expert was brought from `begin_ns` until now, for whoever records that."""
    _note(board, flat, begin_ns)


@_compiled
def close(board):  # type: ignore[no-untyped-def]
    """Nothing is loaded ahead any more; whoever waits goes on."""
    lock(board[at.MUTEX])
    board[at.IS_CLOSED], board[at.DEMANDING] = 1, 0
    wake_all(board[at.WORK])
    wake_all(board[at.CHANGED])
    unlock(board[at.MUTEX])


@_compiled
def leave(board):  # type: ignore[no-untyped-def]
    """Whoever loaded ahead does so no more: it has failed, or was interrupted."""
    lock(board[at.MUTEX])
    board[at.COPIER] = NOTHING
    wake_all(board[at.CHANGED])
    unlock(board[at.MUTEX])


@_compiled
def forget(board):  # type: ignore[no-untyped-def]
    """Something broke off: nothing is demanded, and no prefetch waits."""
    cache = _cache(board)
    lock(board[at.MUTEX])
    prefetch_queue.forget_prefetches(cache)
    board[at.DEMANDING] = 0
    wake_all(board[at.WORK])
    unlock(board[at.MUTEX])


@_compiled
def wait_idle(board, most_ns):  # type: ignore[no-untyped-def]
    """Wait until nothing is being loaded ahead, nor waits to be, for so long at most; returns whether it is so."""
    cache, end_ns = _cache(board), now_ns() + most_ns
    lock(board[at.MUTEX])
    while (board[at.COPIER] != NOTHING or cache.counts[NUM_PENDING]) and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.CHANGED], board[at.MUTEX], end_ns)
    is_idle = board[at.COPIER] == NOTHING and not cache.counts[NUM_PENDING]
    unlock(board[at.MUTEX])
    return is_idle


@_compiled
def empty(board):  # type: ignore[no-untyped-def]
    """Every expert is absent; see the cache's `reset`."""
    lock(board[at.MUTEX])
    kernels.reset(_cache(board))
    unlock(board[at.MUTEX])


@_compiled
def release(board, layer, experts):  # type: ignore[no-untyped-def]
    """Experts of the running set that have been used, [n] ids, and may go now."""
    lock(board[at.MUTEX])
    kernels.release(_cache(board), layer, experts)
    unlock(board[at.MUTEX])


@_compiled
def hold(board, flat):  # type: ignore[no-untyped-def]
    """Keep an expert of the running layer from going, though it is not demanded; returns its slot, or NO_SLOT if it is not here."""
    cache, slot = _cache(board), np.int64(NO_SLOT)
    lock(board[at.MUTEX])
    if cache.presence[flat] == RESIDENT:
        cache.running[flat] = True
        slot = cache.slot_of[flat]
    unlock(board[at.MUTEX])
    return slot


@_compiled
def can_make_room(board, num_own, most_ns):  # type: ignore[no-untyped-def]
    """Wait, if somebody else's load is under way, until one may go or that load is over.

    Args:
        num_own: how many loads are the caller's own.
    Returns:
        Whether the caller may look for a slot again; otherwise nobody may go, and nobody else's load is under way.
    """
    cache, end_ns = _cache(board), now_ns() + most_ns
    lock(board[at.MUTEX])
    is_other = _num_loading(cache) > num_own
    while is_other and not kernels.can_evict(cache) and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.CHANGED], board[at.MUTEX], end_ns)
        if _num_loading(cache) <= num_own:
            break
    may_look = is_other or kernels.can_evict(cache)
    unlock(board[at.MUTEX])
    return may_look


@_compiled
def _num_loading(cache):  # type: ignore[no-untyped-def]
    return cache.counts[HELD] - cache.counts[NUM_RESIDENT]
