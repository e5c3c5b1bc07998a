"""A thread whose end can be awaited again and again."""

import threading
from collections.abc import Callable


class Worker(threading.Thread):
    """A daemon thread that does one piece of work.

    CPython 3.11 and 3.12 take a thread for ended when a signal cuts a wait for it short; here the wait is for a lock that the
    thread itself lets go. One that was never started has ended.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        try:
            self._work()
        finally:
            del self._work  # as a thread does: whoever still holds it holds nothing of what it worked on
            self._running.release()

    def join(self, timeout: float | None = None) -> None:
        if self.ident is not None and self._running.acquire(timeout=-1 if timeout is None else timeout):
            self._running.release()
            super().join(timeout)
