"""Who does the work that inference leaves to others: a thread, or the caller itself."""

import math
import queue
import threading
import time
from collections.abc import Callable

from finemoe.errors import EngineError

Work = Callable[[], object]
_PATIENCE_S = 0.05


class Worker:
    """Does what it is given, in that order, in a daemon thread from `start` on; the first failure is its last work.

    Args:
        name: of the thread; title: what its failure's message calls it.
        when_failed: called in the thread, once `failure` says with what.
    """

    is_beside = True  # inference goes on meanwhile

    def __init__(self, name: str, title: str, when_failed: Work = lambda: None) -> None:
        self.failure: BaseException | None = None
        self._title, self._when_failed = title, when_failed
        self._given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = _Thread(self._work, name)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def do(self, work: Work) -> float:
        """Give it something to do, from any thread and also while garbage is collected.

        Returns:
            How long the caller has waited for it to be done, in seconds.
        """
        self._given.put(work)
        return 0.0

    def flush(self) -> None:
        """Wait until everything given so far has been done, or has failed."""
        done = threading.Event()
        self._given.put(done.set)
        while self.failure is None and self.is_alive and not done.wait(_PATIENCE_S):
            pass

    def check(self) -> None:
        """Raise an EngineError if it has failed, with the cause."""
        if self.failure is not None:
            raise EngineError(f"{self._title} failed: {self.failure}; the engine cannot go on, close it") from self.failure

    def stop(self) -> None:
        """End after what is given already."""
        self._given.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread's end, which may be cut short and begun again."""
        self._thread.join(timeout)

    def close(self) -> None:
        """Stop, and wait for the end; closing again is harmless."""
        self.stop()
        self.join()

    def _work(self) -> None:
        try:
            while (work := self._given.get()) is not None:
                work()
                del work  # while it waits for more, it holds nothing
        except BaseException as error:
            self.failure = error
            self._when_failed()


class InlineWorker(Worker):
    """The same work at once in the calling thread, which hears of failures itself."""

    is_beside = False

    def start(self) -> None:
        return None

    def do(self, work: Work) -> float:
        begin_s = time.perf_counter()
        work()
        return time.perf_counter() - begin_s

    def flush(self) -> None:
        return None

    def stop(self) -> None:
        return None


class _Thread(threading.Thread):
    """A thread whose end can be awaited again and again.

    CPython 3.11 and 3.12 take a thread for ended when a signal cuts a wait for it short; here the wait is for a lock that the
    thread itself lets go. An interrupt may keep it from being handed on to others who wait, so that they look, too.
    One that was never started has ended.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._has_ended = False
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        try:
            self._work()
        finally:
            del self._work  # as a thread does: whoever still holds it holds nothing of what it worked on
            self._has_ended = True
            self._running.release()

    def join(self, timeout: float | None = None) -> None:
        end_s = math.inf if timeout is None else time.perf_counter() + timeout
        while self.ident is not None and not self._has_ended and (left_s := end_s - time.perf_counter()) > 0:
            if self._running.acquire(timeout=min(left_s, _PATIENCE_S)):
                self._running.release()
        if self._has_ended:
            super().join(timeout)
