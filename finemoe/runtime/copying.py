"""Copies in host memory as compiled code starts and awaits them: plain ones and paced ones (see `link`)."""

import numpy as np

from finemoe import native
from finemoe.compiling import njit
from finemoe.native import copy_bytes, float64_at, int64_at, lock, new_mutex, now_ns, set_timer_slack, sleep_until, unlock
from finemoe.stale_kernels import forget_stale_kernels

forget_stale_kernels(__file__, native.compiled.__file__)
_FREE_AT = 16  # after the mutex: the time at which the link is free (ns), then ns per byte (float64)
_NS_PER_BYTE = _FREE_AT + 1
_LEAST_SLACK_NS = 1


def pace(bytes_per_s: float) -> np.ndarray:
    """The state of a paced link, [n] int64."""
    state = np.concatenate([new_mutex(), np.zeros(2, dtype=np.int64)])
    state[_NS_PER_BYTE:].view(np.float64)[0] = 1e9 / bytes_per_s
    return state


@njit(cache=True, nogil=True)
def copy_memory(link, sink, source, size, fence):  # type: ignore[no-untyped-def]
    copy_bytes(sink, source, size)
    return 0


@njit(cache=True, nogil=True)
def wait_memory(link, mark, most_ns):  # type: ignore[no-untyped-def]
    return 1


@njit(cache=True, nogil=True)
def copy_paced(link, sink, source, size, fence):  # type: ignore[no-untyped-def]
    """Copy bytes; the link's time starts with the call, so it includes moving the bytes in memory."""
    mark = take_turn(link, now_ns(), size)
    copy_bytes(sink, source, size)
    return mark


@njit(cache=True, nogil=True)
def take_turn(link, begin_ns, size):  # type: ignore[no-untyped-def]
    """The end time of a copy that starts at `begin_ns`, after all earlier ones."""
    state = int64_at(link, _NS_PER_BYTE)
    lock(link)
    state[_FREE_AT] = max(state[_FREE_AT], begin_ns) + np.int64(np.ceil(size * float64_at(link + 8 * _NS_PER_BYTE, 1)[0]))
    end_ns = state[_FREE_AT]
    unlock(link)
    return end_ns


@njit(cache=True, nogil=True)
def wait_paced(link, mark, most_ns):  # type: ignore[no-untyped-def]
    """Sleep with the least possible timer slack; with the default the system would wake the thread 50 us late."""
    now = now_ns()
    if now < mark:
        before_ns = set_timer_slack(_LEAST_SLACK_NS)
        sleep_until(min(mark, now + most_ns))
        set_timer_slack(before_ns)
        now = now_ns()
    return int(now >= mark)
