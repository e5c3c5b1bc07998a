"""Ends what nobody holds any more, in a thread of its own that lives as long as there is something to end.

Garbage is collected inside any allocation of any thread, whatever locks that thread holds: there nothing may be waited for, and
no lock be taken. So an owner that is collected only leaves a note, and the reaper's thread does the rest.
"""

import atexit
import itertools
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

_NOBODY = -1
_PATIENCE_S = 0.01
_numbers = itertools.count()
_ends: dict[int, Callable[[], None]] = {}  # of living owners, and of those that have left a note
_notes: "queue.SimpleQueue[int]" = queue.SimpleQueue()
_lock = threading.Lock()  # of the thread's beginning and end; collected owners never take it
_thread: threading.Thread | None = None


class Watch:
    """Calls `end` once when `owner` has been dropped, or at the end of the process; `end` must not hold the owner."""

    def __init__(self, owner: Any, end: Callable[[], None]) -> None:
        self._number = next(_numbers)
        with _lock:
            _ends[self._number] = end
            _start()
        self._finalizer = weakref.finalize(owner, _notes.put, self._number)
        self._finalizer.atexit = False

    def cancel(self) -> None:
        """The owner has come to its end itself; the last one's takes the thread with it."""
        self._finalizer.detach()
        _ends.pop(self._number, None)
        thread = _thread
        if not _ends and thread is not None:
            _notes.put(_NOBODY)
            while thread.is_alive() and not _ends:  # a new owner elsewhere keeps the thread
                thread.join(_PATIENCE_S)


def _start() -> None:
    global _thread
    if _thread is None or not _thread.is_alive():  # a forked process has no thread but its own
        _thread = threading.Thread(target=_reap, name="finemoe-reaper", daemon=True)
        _thread.start()


def _reap() -> None:
    global _thread
    while True:
        _end(_notes.get())
        with _lock:
            if not _ends:
                _thread = None
                return


def _end(number: int) -> None:
    try:
        _ends.pop(number, _nothing)()
    except Exception as error:
        print(f"finemoe: an engine that was dropped could not be ended: {error}", file=sys.stderr)


def _nothing() -> None:
    return None


@atexit.register
def _end_all() -> None:
    for number in list(_ends):
        _end(number)
