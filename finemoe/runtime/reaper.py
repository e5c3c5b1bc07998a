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

from finemoe.runtime.worker import Worker

_NOBODY = -1
_PATIENCE_S = 0.01
_numbers = itertools.count()
_ends: dict[int, Callable[[], None]] = {}  # of living owners, and of those that have left a note
_last_words: dict[int, Callable[[], None]] = {}  # the same at the end of the process
_notes: "queue.SimpleQueue[int]" = queue.SimpleQueue()
_lock = threading.Lock()  # of the thread's beginning and end; collected owners never take it
_thread: Worker | None = None


class Watch:
    """Ends what an owner leaves behind when it is dropped, from `begin` on."""

    def __init__(self, owner: Any) -> None:
        self._number = next(_numbers)
        self._finalizer = weakref.finalize(owner, _notes.put, self._number)
        self._finalizer.atexit = False

    def begin(self, end: Callable[[], None], at_exit: Callable[[], None]) -> None:
        """Call one of them once; neither must hold the owner.

        Args:
            end: when the owner has been dropped. at_exit: at the end of the process, when threads may still be using it.
        """
        _last_words[self._number] = at_exit
        _ends[self._number] = end
        with _lock:
            _start()

    def cancel(self) -> None:
        """The owner has come to its end itself; the last one's takes the thread with it."""
        self._finalizer.detach()
        _ends.pop(self._number, None)
        _last_words.pop(self._number, None)
        thread = _thread
        if not _ends and thread is not None:
            _notes.put(_NOBODY)
            while thread.is_alive() and not _ends:  # a new owner elsewhere keeps the thread
                thread.join(_PATIENCE_S)


def _start() -> None:
    global _thread
    if _thread is None or not _thread.is_alive():  # a forked process has no thread but its own
        _thread = Worker(_reap, "finemoe-reaper")
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
    _last_words.pop(number, None)
    _call(_ends.pop(number, _nothing))


def _call(end: Callable[[], None]) -> None:
    try:
        end()
    except Exception as error:
        print(f"finemoe: an engine that was dropped could not be ended: {error}", file=sys.stderr)


def _nothing() -> None:
    return None


@atexit.register
def _end_all() -> None:
    for number in list(_last_words):
        _ends.pop(number, None)
        _call(_last_words.pop(number, _nothing))
