"""How a `Board` loads experts before they are demanded: in the link's worker, or inline. See `transitions`."""

import numpy as np

from finemoe import native, report
from finemoe.cache import addresses, kernels, prefetch_queue, state
from finemoe.cache.prefetch_queue import NOTHING
from finemoe.cache.state import ABSENT, HELD, NUM_PENDING
from finemoe.compiling import njit
from finemoe.native import int64_at, lock, now_ns, set_timer_slack, transition, unlock, wait, wait_until, wake_all
from finemoe.runtime import board as at
from finemoe.runtime import transitions
from finemoe.runtime.transitions import CLOSED, FAILED, NO_SLOT, PATIENCE_NS, cache_of, copy_at, give_slot, wait_at
from finemoe.stale_kernels import forget_stale_kernels

_SOURCES = native.compiled, addresses, kernels, prefetch_queue, state, report, at, transitions
forget_stale_kernels(__file__, *(one.__file__ for one in _SOURCES))
_LEAST_SLACK_NS = 1


@transition
def reserve(board, flat, may_evict, is_counted):  # type: ignore[no-untyped-def]
    """A slot for an expert to be loaded before it is demanded.

    Args:
        may_evict: whether another expert may be evicted for it.
        is_counted: whether it counts as prefetched.
    Returns:
        The slot; NO_SLOT if the expert is here already or no slot is available; or FAILED.
    """
    cache, slot = cache_of(board), np.int64(NO_SLOT)
    lock(board[at.MUTEX])
    if cache.presence[flat] == ABSENT and (may_evict or cache.counts[HELD] < len(cache.held)):
        slot = give_slot(board, cache, flat, True) if is_counted else np.int64(kernels.give_slot(cache, flat, False)[0])
    unlock(board[at.MUTEX])
    return slot


@njit(cache=True, nogil=True)
def _outlast(board, mark):  # type: ignore[no-untyped-def]
    """Wait for a copy: 1, FAILED, or CLOSED if the memory was closed meanwhile."""
    found = np.int64(0)
    while found == 0:
        found = wait_at(board[at.WAIT])(board[at.LINK], mark, PATIENCE_NS)
        if found == 0 and board[at.IS_CLOSED]:
            return np.int64(CLOSED)
    return np.int64(FAILED if found < 0 else 1)


@transition
def let_demands_pass(board, most_ns):  # type: ignore[no-untyped-def]
    """Wait while a layer demands loads, at most `most_ns`; returns whether no layer does."""
    end_ns = now_ns() + most_ns
    lock(board[at.MUTEX])
    while board[at.DEMANDING] and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.WORK], board[at.MUTEX], end_ns)
    is_over = board[at.IS_CLOSED] or not board[at.DEMANDING]
    unlock(board[at.MUTEX])
    return is_over


@transition
def settle(board, flat):  # type: ignore[no-untyped-def]
    """Mark a loaded expert as resident."""
    lock(board[at.MUTEX])
    _settle(board, cache_of(board), flat)
    unlock(board[at.MUTEX])


@njit(cache=True, nogil=True)
def _settle(board, cache, flat):  # type: ignore[no-untyped-def]
    kernels.complete(cache, flat)
    if board[at.COPIER] == flat:
        board[at.COPIER] = NOTHING
    wake_all(board[at.CHANGED])


@transition
def take_next(board):  # type: ignore[no-untyped-def]
    """Take the most urgent prefetch, inline: it has its slot (`SLOT`), and the caller must load and settle it.

    Returns:
        Its flat id, NOTHING if none is pending, or FAILED.
    """
    lock(board[at.MUTEX])
    flat = _take_next(board, cache_of(board))
    unlock(board[at.MUTEX])
    return flat


@njit(cache=True, nogil=True)
def _take_next(board, cache):  # type: ignore[no-untyped-def]
    while cache.counts[NUM_PENDING]:
        flat = prefetch_queue.take_most_urgent(cache)
        if flat == NOTHING:
            break
        slot = give_slot(board, cache, flat, True)
        if slot == FAILED:
            return np.int64(FAILED)
        if slot >= 0:
            board[at.COPIER], board[at.SLOT] = flat, slot
            return np.int64(flat)
    return np.int64(NOTHING)


@transition
def serve(board):  # type: ignore[no-untyped-def]
    """The worker's main loop: load pending prefetches, most urgent first, whenever nothing is demanded.

    Returns:
        CLOSED, FAILED, or the flat id of an expert whose record must be read from disk: it has its slot, and the caller must load
        and settle it before calling this again.
    """
    before_ns = set_timer_slack(_LEAST_SLACK_NS)
    flat = _serve(board)
    set_timer_slack(before_ns)  # the thread may continue with other work
    return flat


@njit(cache=True, nogil=True)
def _serve(board):  # type: ignore[no-untyped-def]
    """Copy chunk after chunk, up to IN_FLIGHT at a time, of one expert and then the next, so that the link is never idle; an
    expert is resident when its last chunk has arrived. While a layer demands loads, no chunk starts."""
    cache = cache_of(board)
    records, marks = int64_at(board[at.RECORDS], len(cache.presence)), int64_at(board[at.MARKS], at.MOST_IN_FLIGHT)
    ends, begins_ns = np.empty(at.MOST_IN_FLIGHT, dtype=np.int64), np.empty(at.MOST_IN_FLIGHT, dtype=np.int64)
    flat, slot, start, begin_ns, begun, over = np.int64(NOTHING), np.int64(0), np.int64(0), np.int64(0), 0, 0
    free_ns = np.int64(0)  # when the previous expert had arrived
    while True:
        lock(board[at.MUTEX])
        while begun == over and not board[at.IS_CLOSED] and (board[at.DEMANDING] or (flat < 0 and not cache.counts[NUM_PENDING])):
            wait(board[at.WORK], board[at.MUTEX])
        is_closed, may_start = board[at.IS_CLOSED], not board[at.DEMANDING] and begun - over < board[at.IN_FLIGHT]
        if may_start and flat < 0 and not is_closed:
            flat, start, begin_ns = _take_next(board, cache), np.int64(0), now_ns()
            slot = board[at.SLOT]
            if flat == NOTHING:
                wake_all(board[at.CHANGED])
        unlock(board[at.MUTEX])
        if is_closed:
            return np.int64(CLOSED)
        if flat == FAILED:
            return flat
        if may_start and flat >= 0 and records[flat]:
            place = begun % at.MOST_IN_FLIGHT
            size = _start_chunk(board, cache, flat, slot, records[flat], start, marks[place : place + 1])
            if size < 0:
                return np.int64(FAILED)
            start += size
            is_last = start == int64_at(board[at.SIZES], len(cache.presence))[flat]
            ends[place], begins_ns[place] = flat if is_last else NOTHING, begin_ns
            flat = np.int64(NOTHING) if is_last else flat
            begun += 1
        elif begun > over:
            place = over % at.MOST_IN_FLIGHT
            found = _outlast(board, marks[place])
            if found < 0:
                return found
            if ends[place] >= 0:
                free_ns = _arrive(board, cache, ends[place], max(begins_ns[place], free_ns))
            over += 1
        elif may_start and flat >= 0:
            return flat


@njit(cache=True, nogil=True)
def _start_chunk(board, cache, flat, slot, source, start, mark):  # type: ignore[no-untyped-def]
    """Start copying the chunk of an expert that begins at byte `start`; returns its size, or FAILED. mark: [1], filled in."""
    size, fence = int64_at(board[at.SIZES], len(cache.presence))[flat], int64_at(board[at.FENCES], len(cache.held))[slot]
    sink, chunk = board[at.SLOTS] + slot * board[at.SLOT_BYTES], min(board[at.CHUNK_BYTES], size - start)
    mark[0] = copy_at(board[at.COPY])(board[at.LINK], sink + start, source + start, chunk, fence)
    return np.int64(chunk) if mark[0] >= 0 else np.int64(FAILED)


@njit(cache=True, nogil=True)
def _arrive(board, cache, flat, begin_ns):  # type: ignore[no-untyped-def]
    """An expert's last chunk has arrived; returns the time, in ns."""
    end_ns = now_ns()
    lock(board[at.MUTEX])
    _settle(board, cache, flat)
    _note(board, flat, begin_ns, end_ns)
    unlock(board[at.MUTEX])
    return end_ns


@njit(cache=True, nogil=True)
def _note(board, flat, begin_ns, end_ns):  # type: ignore[no-untyped-def]
    place = board[at.SPAN]
    if place < board[at.NUM_SPANS]:
        span = int64_at(board[at.SPANS] + place * 24, 3)
        span[0], span[1], span[2] = flat, begin_ns, end_ns
    board[at.SPAN] = place + 1


@transition
def note_in(board, spans, num_spans):  # type: ignore[no-untyped-def]
    """Record later loads at this address: up to `num_spans` spans (flat id, begin, end in ns); 0 records none.

    Returns:
        How many loads there have been since the previous call.
    """
    lock(board[at.MUTEX])
    num_noted = board[at.SPAN]
    board[at.SPANS], board[at.NUM_SPANS], board[at.SPAN] = spans, num_spans, 0
    unlock(board[at.MUTEX])
    return num_noted


@transition
def close(board):  # type: ignore[no-untyped-def]
    """Stop all loading ahead and wake every waiting thread."""
    lock(board[at.MUTEX])
    board[at.IS_CLOSED], board[at.DEMANDING] = 1, 0
    wake_all(board[at.WORK])
    wake_all(board[at.CHANGED])
    unlock(board[at.MUTEX])


@transition
def leave(board):  # type: ignore[no-untyped-def]
    """Note that no thread loads ahead any more: it has failed or was interrupted."""
    lock(board[at.MUTEX])
    board[at.COPIER] = NOTHING
    wake_all(board[at.CHANGED])
    unlock(board[at.MUTEX])


@transition
def forget(board):  # type: ignore[no-untyped-def]
    """After a failure: nothing is demanded any more, and pending prefetches are dropped."""
    cache = cache_of(board)
    lock(board[at.MUTEX])
    prefetch_queue.forget_prefetches(cache)
    board[at.DEMANDING] = 0
    wake_all(board[at.WORK])
    unlock(board[at.MUTEX])


@transition
def wait_idle(board, most_ns):  # type: ignore[no-untyped-def]
    """Wait until nothing is being loaded ahead or pending, at most `most_ns`; returns whether that is so."""
    cache, end_ns = cache_of(board), now_ns() + most_ns
    lock(board[at.MUTEX])
    while (board[at.COPIER] != NOTHING or cache.counts[NUM_PENDING]) and not board[at.IS_CLOSED] and now_ns() < end_ns:
        wait_until(board[at.CHANGED], board[at.MUTEX], end_ns)
    is_idle = board[at.COPIER] == NOTHING and not cache.counts[NUM_PENDING]
    unlock(board[at.MUTEX])
    return is_idle


@transition
def empty(board):  # type: ignore[no-untyped-def]
    """Make every expert absent; see the cache's `reset`."""
    lock(board[at.MUTEX])
    kernels.reset(cache_of(board))
    unlock(board[at.MUTEX])
