"""Copies to a CUDA device as compiled code starts and awaits them, by addresses of the driver's functions (see `cuda_link`)."""

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.native import function_types, int64_at, lock, new_mutex, unlock
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, native.compiled.__file__)
# Places of a link, after a mutex: context and stream; the driver's functions; rings of events for copies and for fences; the
# driver's last error; and room for a popped context, which is ignored.
_CONTEXT, _STREAM, _PUSH_CONTEXT, _POP_CONTEXT, _COPY, _RECORD, _SYNCHRONIZE, _WAIT_EVENT = range(16, 24)
_EVENTS, _NUM_EVENTS, _NEXT_EVENT, _FENCES, _NUM_FENCES, _NEXT_FENCE, ERROR, _POPPED, _NUM_PLACES = range(24, 33)
_ERROR = np.int32(0)
_, _one_at = function_types(_ERROR, 1)
_, _two_at = function_types(_ERROR, 1, 1)
_, _three_at = function_types(_ERROR, 1, 1, 1)
_, _four_at = function_types(_ERROR, 1, 1, 1, 1)


def cuda_state(
    context: int, stream: int, functions: tuple[int, int, int, int, int, int], events: np.ndarray, fences: np.ndarray
) -> np.ndarray:
    """The state of a link to a CUDA device, [n] int64. Its owner must also keep the arrays of events, [n] int64 each, alive.

    Args:
        context, stream: handles of the link's context and stream.
        functions: push_context, pop_context, copy, record, synchronize, wait_event of a CudaDriver.
        events, fences: handles of events for copies and for fences.
    """
    state = np.zeros(_NUM_PLACES, dtype=np.int64)
    mutex = new_mutex()
    state[: len(mutex)] = mutex
    state[[_CONTEXT, _STREAM]] = context, stream
    state[_PUSH_CONTEXT : _WAIT_EVENT + 1] = functions
    state[[_EVENTS, _NUM_EVENTS]] = events.ctypes.data, len(events)
    state[[_FENCES, _NUM_FENCES]] = fences.ctypes.data, len(fences)
    return state


@njit(cache=True)
def _enter(state):  # type: ignore[no-untyped-def]
    """Enter the link's context, which determines the default stream; the thread may be in another device's context, or in
    none."""
    return _one_at(state[_PUSH_CONTEXT])(state[_CONTEXT])


@njit(cache=True)
def _leave(link, state, error):  # type: ignore[no-untyped-def]
    """Return to the thread's own context; returns the earlier error, or this call's."""
    found = _one_at(state[_POP_CONTEXT])(link + 8 * _POPPED)
    return error if error != 0 else found


@njit(cache=True, nogil=True)
def copy_to_device(link, sink, source, size, fence):  # type: ignore[no-untyped-def]
    """Copy on the link's stream, behind the fence; the mark is an event."""
    state = int64_at(link, _NUM_PLACES)
    lock(link)  # otherwise another thread's copy may come between this one and its event
    mark = state[_NEXT_EVENT]
    state[_NEXT_EVENT] = (mark + 1) % state[_NUM_EVENTS]
    event = int64_at(state[_EVENTS], state[_NUM_EVENTS])[mark]
    error = _enter(state)
    if error == 0:
        error = _leave(link, state, _copy_behind(state, sink, source, size, fence, event))
    unlock(link)
    return _event_or_failure(state, event, error)


@njit(cache=True)
def _copy_behind(state, sink, source, size, fence, event):  # type: ignore[no-untyped-def]
    error = _three_at(state[_WAIT_EVENT])(state[_STREAM], fence, 0) if fence != 0 else _ERROR
    if error == 0:
        error = _four_at(state[_COPY])(sink, source, size, state[_STREAM])
    if error == 0:
        error = _two_at(state[_RECORD])(event, state[_STREAM])
    return error


@njit(cache=True)
def _event_or_failure(state, event, error):  # type: ignore[no-untyped-def]
    if error != 0:
        state[ERROR] = error
        return np.int64(-1)
    return event


@njit(cache=True, nogil=True)
def wait_for_device(link, mark, most_ns):  # type: ignore[no-untyped-def]
    """Wait on the host to the end, however long that takes: a copy is short enough to ignore signals meanwhile."""
    state = int64_at(link, _NUM_PLACES)
    error = _enter(state)
    if error == 0:
        error = _leave(link, state, _one_at(state[_SYNCHRONIZE])(mark))
    return np.int64(1) if _event_or_failure(state, mark, error) >= 0 else np.int64(-1)


@njit(cache=True, nogil=True)
def order_stream(link, stream, mark):  # type: ignore[no-untyped-def]
    """Make later work on a stream of the link's device wait for a copy; returns the mark, or -1."""
    state = int64_at(link, _NUM_PLACES)
    error = _enter(state)
    if error == 0:
        error = _leave(link, state, _three_at(state[_WAIT_EVENT])(stream, mark, 0))
    return _event_or_failure(state, mark, error)


@njit(cache=True, nogil=True)
def fence_stream(link, stream):  # type: ignore[no-untyped-def]
    """An event after all work issued on a stream so far, or -1.

    Events are reused in a ring and recorded again. A thread that still waits for an event's earlier position then waits for the
    later one, which comes after it as long as all compute is on streams that follow each other (`compute_stream`).
    """
    state = int64_at(link, _NUM_PLACES)
    lock(link)
    event = int64_at(state[_FENCES], state[_NUM_FENCES])[state[_NEXT_FENCE]]
    state[_NEXT_FENCE] = (state[_NEXT_FENCE] + 1) % state[_NUM_FENCES]
    unlock(link)
    error = _enter(state)
    if error == 0:
        error = _leave(link, state, _two_at(state[_RECORD])(event, stream))
    return _event_or_failure(state, event, error)
