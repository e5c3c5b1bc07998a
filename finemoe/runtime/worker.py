"""Who does the work that inference leaves to others: a thread, or the caller itself."""

import math
import queue
import threading
import time
from collections.abc import Callable

from finemoe.errors import EngineError

Work = Callable[[], object]
_PATIENCE_S = 0.05
_NUM_TRIPS = 15
_NUM_TURNS = 4  # that two threads take at the interpreter's lock while one searches
_NEWEST_SHARE = 0.2  # of the last measurement in what is expected of the next


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

    def do(self, work: Work, kind: object = None) -> float:
        """Give it something to do, from any thread and also while garbage is collected.

        Args:
            kind: of work that takes alike, for whoever measures it.
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


class ThriftyWorker(Worker):
    """Does at once, in the calling thread, what takes less time than handing it over, as measured; the rest beside.

    Two threads that both want the interpreter take turns at its lock, and each turn may cost as much as a short search. Nothing
    overtakes what was given before.
    """

    def __init__(self, name: str, title: str, when_failed: Work = lambda: None) -> None:
        super().__init__(name, title, when_failed)
        self._num_given = self._num_done = 0
        self._costs_s: dict[object, float] = {}
        self._handing_over_s = 0.0

    def start(self) -> None:
        super().start()
        self._handing_over_s = _NUM_TURNS * self._round_trip_s()

    def do(self, work: Work, kind: object = None) -> float:
        """As in Worker; kind: of work that takes alike. What is not known yet is handed over."""
        is_first = self._num_given == self._num_done and self.failure is None
        if is_first and self._costs_s.get(kind, math.inf) < self._handing_over_s:
            return self._do_at_once(work, kind)
        self._num_given += 1
        self._given.put(lambda: self._do_beside(work, kind))
        return 0.0

    def _do_at_once(self, work: Work, kind: object) -> float:
        begin_s = time.thread_time()
        try:
            work()
        except Exception as error:  # the caller hears of it as of a failure beside
            self.failure = error
            self._when_failed()
        taken_s = time.thread_time() - begin_s
        self._note(kind, taken_s)
        return taken_s

    def _do_beside(self, work: Work, kind: object) -> None:
        begin_s = time.thread_time()
        work()
        self._note(kind, time.thread_time() - begin_s)
        self._num_done += 1

    def _note(self, kind: object, taken_s: float) -> None:
        before_s = self._costs_s.get(kind, taken_s)
        self._costs_s[kind] = before_s + _NEWEST_SHARE * (taken_s - before_s)

    def _round_trip_s(self) -> float:
        """Time from giving the thread something to do until it is known to be done; median."""
        times_s = []
        for _ in range(_NUM_TRIPS):
            done, begin_s = threading.Lock(), time.perf_counter()
            done.acquire()
            self._given.put(done.release)
            done.acquire(timeout=_PATIENCE_S)
            times_s.append(time.perf_counter() - begin_s)
        return sorted(times_s)[_NUM_TRIPS // 2]


class InlineWorker(Worker):
    """The same work at once in the calling thread, which hears of failures itself."""

    is_beside = False

    def start(self) -> None:
        return None

    def do(self, work: Work, kind: object = None) -> float:
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
