"""What inference does on a `Board`: each transition is one call outside the interpreter's lock (see `fetching` for what is done
ahead, `hearing` for predictions).

Moving an expert therefore never waits for the interpreter, and an interrupt comes before or after a transition, never inside one.
Blocking transitions return after `most_ns`, so that the interpreter can check for signals; only a CUDA copy is awaited to its
end.

Experts are given by flat id. A mark is a link's number of a copy (see `link.Link`).
"""

import numpy as np

from finemoe import native, report
from finemoe.cache import addresses, kernels, prefetch_queue, state, streaming
from finemoe.cache.addresses import cache_at
from finemoe.cache.state import ABSENT, HELD, NUM_PENDING, NUM_RESIDENT, RESIDENT, STREAMS, empty_state
from finemoe.compiling import njit
from finemoe.native import float32_at, function_types, int64_at, lock, now_ns, transition, unlock, wait_until, wake_all
from finemoe.report import DEMANDED, NUM_MOVED, PREFETCHED, WASTED
from finemoe.runtime import board as at
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = native.compiled, addresses, kernels, prefetch_queue, state, streaming, report, at
forget_stale_kernels(__file__, *(one.__file__ for one in _SOURCES))
FAILED = -2  # the eviction rule or the link failed
CLOSED = -3
NO_SLOT = -1
MUST_READ = -1  # a mark: the record is on disk, and the interpreter must read it
HERE = -4  # a mark: nothing has to be copied

_STATS, _NUMBERS = empty_state(1, 1, 1).stats, np.zeros(1, dtype=np.int64)
_weigh_at, _ = function_types(None, _STATS, _NUMBERS, np.zeros(1))
_visit_at, _ = function_types(None, _STATS, 1, _NUMBERS)
_, copy_at = function_types(1, 1, 1, 1, 1, 1)
_, wait_at = function_types(1, 1, 1, 1)
PATIENCE_NS = 50_000_000  # after this time the interpreter checks for signals


@njit(cache=True)
def cache_of(board):  # type: ignore[no-untyped-def]
    return cache_at(int64_at(board[at.CACHE], board[at.NUM_CACHE]))


@transition
def start_iteration(board, number, streams):  # type: ignore[no-untyped-def]
    """Start a new iteration with this number, a streamed one or not; see the cache's `start_iteration` and `start_streaming`."""
    cache = cache_of(board)
    lock(board[at.MUTEX])
    board[at.ITERATION] = number
    kernels.start_iteration(cache)
    if streams:
        streaming.start_streaming(cache)
        wake_all(board[at.WORK])
    unlock(board[at.MUTEX])


@transition
def demand(board, layer, selected, told):  # type: ignore[no-untyped-def]
    """Access a layer's set when its gate has fired. Missing experts get slots in ascending order while there are any, and their
    copies start. Until that is done, no chunk of a prefetch starts. In a streamed iteration, experts of later layers are then
    queued.

    Args:
        selected: [m] ids of the layer's experts, in any order and possibly repeated; ids below 0 or from J on are ignored.
        told: [4, J], filled with the set in ascending order, where each expert was found, its slot or NO_SLOT, and the mark of
            its copy if it was missing.
    Returns:
        (n, the number of missing experts, whether the caller must handle experts that have a slot but no valid mark and then call
        `end_demand`, the result of `count_recalled`).
    """
    cache = cache_of(board)
    num_experts = cache.stats.num_experts
    experts, found, slots, marks = told[0], told[1], told[2], told[3]
    n = _distinct(selected, num_experts, experts)
    where = np.empty(n, dtype=np.uint8)
    lock(board[at.MUTEX])
    _visit(board, cache, layer, experts[:n])
    kernels.access(cache, layer, experts[:n], where)
    num_recalled = _count_recalled(board, cache, layer, experts[:n])  # no further predictions for this layer count
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
    if cache.counts[STREAMS]:
        _stream_ahead(board, cache)
    if num_missing and not goes_on:
        _end_demand(board)
    return n, num_missing, goes_on, num_recalled


@njit(cache=True, nogil=True)
def _stream_ahead(board, cache):  # type: ignore[no-untyped-def]
    lock(board[at.MUTEX])
    streaming.stream_ahead(cache)
    if cache.counts[NUM_PENDING]:
        wake_all(board[at.WORK])
    unlock(board[at.MUTEX])


@njit(cache=True)
def _distinct(selected, num_experts, experts):  # type: ignore[no-untyped-def]
    """Fill `experts` with the distinct ids from 0 to J-1 among these, ascending; returns how many."""
    is_wanted = np.zeros(num_experts, dtype=np.bool_)
    for expert in selected:
        if 0 <= expert < num_experts:
            is_wanted[expert] = True
    n = 0
    for expert in range(num_experts):
        if is_wanted[expert]:
            experts[n] = expert
            n += 1
    return n


@transition
def count_recalled(board, layer, demanded):  # type: ignore[no-untyped-def]
    """How many of the n experts that a layer demanded, [n] ids, are among the n with the highest expected probability when the
    layer was last predicted in this iteration, the lower id first among equals; -1 if it was not predicted."""
    return _count_recalled(board, cache_of(board), layer, demanded)


@njit(cache=True, nogil=True)
def _count_recalled(board, cache, layer, demanded):  # type: ignore[no-untyped-def]
    num_layers, num_experts = len(cache.stats.turns), cache.stats.num_experts
    if int64_at(board[at.FORESEEN_IN], num_layers)[layer] != board[at.ITERATION]:
        return np.int64(-1)
    expected, recalled = float32_at(board[at.FORESEEN] + 4 * layer * num_experts, num_experts), np.int64(0)
    for expert in demanded:
        rank = 0
        for other in range(num_experts):
            rank += expected[other] > expected[expert] or (expected[other] == expected[expert] and other < expert)
        recalled += rank < len(demanded)
    return recalled


@transition
def use(board, layer, selected):  # type: ignore[no-untyped-def]
    """Access a layer's set while every expert is resident for good: no eviction rule needs to learn, but prefetched experts
    become used. `selected` is as in `demand`. Returns the size of the set."""
    cache = cache_of(board)
    num_experts = cache.stats.num_experts
    experts = np.empty(num_experts, dtype=np.int64)
    n = _distinct(selected, num_experts, experts)
    for expert in experts[:n]:
        cache.undemanded[layer * num_experts + expert] = False
    return n


@transition
def end_demand(board):  # type: ignore[no-untyped-def]
    """All loads that a layer demanded are in flight."""
    _end_demand(board)


@njit(cache=True, nogil=True)
def _end_demand(board):  # type: ignore[no-untyped-def]
    lock(board[at.MUTEX])
    board[at.DEMANDING] = max(0, board[at.DEMANDING] - 1)
    wake_all(board[at.WORK])
    unlock(board[at.MUTEX])


@transition
def load_late(board, flat):  # type: ignore[no-untyped-def]
    """Give a slot to a demanded expert that found none at first or gave up its own, and start its copy.

    Returns:
        (slot or NO_SLOT, mark); the mark is HERE if the slot that it gave up has not been reused.
    """
    cache, slot = cache_of(board), np.int64(NO_SLOT)
    lock(board[at.MUTEX])
    if cache.presence[flat] == RESIDENT:
        cache.running[flat] = True
        slot = np.int64(cache.slot_of[flat])
    unlock(board[at.MUTEX])
    return (slot, np.int64(HERE)) if slot >= 0 else _start_load(board, cache, flat)


@njit(cache=True, nogil=True)
def _start_load(board, cache, flat):  # type: ignore[no-untyped-def]
    lock(board[at.MUTEX])
    slot = give_slot(board, cache, flat, False)
    if slot >= 0:
        cache.running[flat] = True  # set it again in case it gave up its slot: no other expert may take the new one
    unlock(board[at.MUTEX])
    if slot < 0:
        return slot, np.int64(FAILED if slot == FAILED else 0)
    source = int64_at(board[at.RECORDS], len(cache.presence))[flat]
    return slot, _start_copy(board, cache, flat, slot, source) if source else np.int64(MUST_READ)


@transition
def start_copy(board, flat, slot, source):  # type: ignore[no-untyped-def]
    """Start copying a demanded expert's record from an address; returns the mark, or FAILED."""
    return _start_copy(board, cache_of(board), flat, slot, source)


@njit(cache=True, nogil=True)
def _start_copy(board, cache, flat, slot, source):  # type: ignore[no-untyped-def]
    size, fence = int64_at(board[at.SIZES], len(cache.presence))[flat], int64_at(board[at.FENCES], len(cache.held))[slot]
    sink = board[at.SLOTS] + slot * board[at.SLOT_BYTES]
    mark = copy_at(board[at.COPY])(board[at.LINK], sink, source, size, fence)
    return mark if mark >= 0 else np.int64(FAILED)


@njit(cache=True, nogil=True)
def _visit(board, cache, layer, experts):  # type: ignore[no-untyped-def]
    try:
        _visit_at(board[at.VISIT])(cache.stats, layer, experts)
    except Exception:
        board[at.HAS_RULE_FAILED] = 1


@njit(cache=True, nogil=True)
def give_slot(board, cache, flat, is_prefetch):  # type: ignore[no-untyped-def]
    """A slot for an absent expert, NO_SLOT or FAILED; the caller holds the lock."""
    slot, evicted, is_wasted = np.int64(FAILED), np.int64(0), False
    try:
        slot, evicted, is_wasted = kernels.admit(cache, flat, is_prefetch, _weigh_at(board[at.WEIGH]))
    except Exception:
        board[at.HAS_RULE_FAILED] = 1
    if slot >= 0:
        sizes, moved = int64_at(board[at.SIZES], len(cache.presence)), int64_at(board[at.MOVED_BYTES], NUM_MOVED)
        moved[PREFETCHED if is_prefetch else DEMANDED] += sizes[flat]
        if is_wasted:
            moved[WASTED] += sizes[evicted]
    return slot


@transition
def land(board, flat, mark, must_wait, most_ns):  # type: ignore[no-untyped-def]
    """Make a demanded expert resident once its copy is over, or once compute will wait for it.

    Args:
        must_wait: whether the calling thread waits for the copy.
    Returns:
        1 if it is resident, 0 if the copy still runs after `most_ns`, or FAILED.
    """
    if must_wait:
        state_now = wait_at(board[at.WAIT])(board[at.LINK], mark, most_ns)
        if state_now <= 0:
            return state_now if state_now == 0 else np.int64(FAILED)
    cache = cache_of(board)
    lock(board[at.MUTEX])
    kernels.complete(cache, flat)
    wake_all(board[at.CHANGED])
    unlock(board[at.MUTEX])
    return np.int64(1)


@transition
def wait_resident(board, flat, most_ns):  # type: ignore[no-untyped-def]
    """Wait for an expert that another thread loads, at most `most_ns`; returns whether it is resident."""
    cache, end_ns = cache_of(board), now_ns() + most_ns
    lock(board[at.MUTEX])
    while cache.presence[flat] != RESIDENT and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.CHANGED], board[at.MUTEX], end_ns)
    is_there = cache.presence[flat] == RESIDENT
    unlock(board[at.MUTEX])
    return is_there


@transition
def release(board, layer, experts):  # type: ignore[no-untyped-def]
    """Allow used experts of the running set, [n] ids, to be evicted."""
    lock(board[at.MUTEX])
    kernels.release(cache_of(board), layer, experts)
    unlock(board[at.MUTEX])


@transition
def hold(board, flat):  # type: ignore[no-untyped-def]
    """Keep an expert of the running layer from being evicted although it is not demanded; returns its slot, or NO_SLOT if it is
    not resident."""
    cache, slot = cache_of(board), np.int64(NO_SLOT)
    lock(board[at.MUTEX])
    if cache.presence[flat] == RESIDENT:
        cache.running[flat] = True
        slot = cache.slot_of[flat]
    unlock(board[at.MUTEX])
    return slot


@transition
def can_make_room(board, num_own, most_ns):  # type: ignore[no-untyped-def]
    """If another thread's load is in flight, wait until an expert may be evicted or that load is over.

    Args:
        num_own: number of the caller's own loads.
    Returns:
        Whether the caller may look for a slot again; otherwise no expert may be evicted and no other load is in flight.
    """
    cache, end_ns = cache_of(board), now_ns() + most_ns
    lock(board[at.MUTEX])
    is_other = _num_loading(cache) > num_own
    while is_other and not kernels.can_evict(cache) and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.CHANGED], board[at.MUTEX], end_ns)
        if _num_loading(cache) <= num_own:
            break
    may_look = is_other or kernels.can_evict(cache)
    unlock(board[at.MUTEX])
    return may_look


@njit(cache=True, nogil=True)
def _num_loading(cache):  # type: ignore[no-untyped-def]
    return cache.counts[HELD] - cache.counts[NUM_RESIDENT]
