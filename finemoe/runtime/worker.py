"""Workers for the work that inference hands off: a thread, or the caller itself."""

import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

from finemoe.errors import EngineError

Work = Callable[[], object]
_PATIENCE_S = 0.05
_NUM_TRIPS = 15
# While one thread infers and another searches, they take turns at the interpreter's lock: 25 us of work cost 70 us more.
_NUM_TURNS = 12
# Measurements kept per kind of work. Their minimum is the estimate: longer ones had cold caches or waited for the interpreter.
_NUM_LAST = 8
_UNKNOWN = (math.inf,)
_TRIAL_EVERY, _TRIAL_LENGTH = 16, 10  # how often to try, and how many times as long the work may be


class Worker:
    """Runs work in order in a daemon thread, from `start` on; after the first failure it runs nothing more.

    Args:
        name: name of the thread.
        title: what the error message of a failure calls the worker.
        when_failed: called in the thread once `failure` is set.
    """

    is_beside = True  # inference continues meanwhile

    def __init__(self, name: str, title: str, when_failed: Work = lambda: None) -> None:
        self.failure: BaseException | None = None
        self._title, self._when_failed = title, when_failed
        self._given: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = _Thread(self._work, name)

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def do(self, work: Work, kind: object = None, keep: Work | None = None, is_urgent: bool = True) -> float:
        """Hand over work, from any thread and even during garbage collection.

        Args:
            work: the work.
            kind: key of work with similar durations, for workers that choose where to run it.
            keep: called first if the work is not done at once, to keep alive what it reads beyond the caller's next step.
            is_urgent: whether a thread waits for the work, for workers that choose where to run it.
        Returns:
            Seconds that the caller waited for the work to be done.
        """
        if keep is not None:
            keep()
        self._given.put(work)
        return 0.0

    def flush(self) -> None:
        """Wait until all work given so far is done or has failed."""
        done = threading.Event()
        self._given.put(done.set)
        while self.failure is None and self.is_alive and not done.wait(_PATIENCE_S):
            pass

    def check(self) -> None:
        """Raise an EngineError with the cause if the worker has failed."""
        if self.failure is not None:
            raise EngineError(f"{self._title} failed: {self.failure}; the engine cannot continue; close it") from self.failure

    def stop(self) -> None:
        """End the thread after the work given so far."""
        self._given.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread's end; the wait may be interrupted and repeated."""
        self._thread.join(timeout)

    def close(self) -> None:
        """Stop, and wait for the end; closing again is harmless."""
        self.stop()
        self.join()

    def _work(self) -> None:
        try:
            while (work := self._given.get()) is not None:
                work()
                del work  # keep no reference while waiting for more
        except BaseException as error:
            self.failure = error
            self._when_failed()


class ThriftyWorker(Worker):
    """Runs work in the calling thread if that is measured to be faster than handing it over, and other work in its thread.

    Two threads that both want the interpreter take turns at its lock, and each turn may cost as much as a short search. Order is
    preserved: short work waits for earlier work if that is short too, and otherwise is queued behind it.
    """

    def __init__(self, name: str, title: str, when_failed: Work = lambda: None) -> None:
        super().__init__(name, title, when_failed)
        self._num_given = 0
        # Recent durations of each kind of work.
        self._last_s: defaultdict[object, deque[float]] = defaultdict(lambda: deque(_UNKNOWN, maxlen=_NUM_LAST))
        self._backlog: dict[int, float] = {}  # expected durations of pending work, by number
        self._trip_s = 0.0

    def start(self) -> None:
        super().start()
        self._trip_s = self._round_trip_s()

    def do(self, work: Work, kind: object = None, keep: Work | None = None, is_urgent: bool = True) -> float:
        """As in Worker. Work of unknown duration is queued, and so is work that no thread waits for, unless it is shorter than
        the handover. Work that seems long only because the thread had to wait is tried at once from time to time."""
        self._num_given = number = self._num_given + 1
        expected_s, most_s = min(self._last_s[kind]), self._trip_s
        if is_urgent:
            most_s *= _NUM_TURNS if number % _TRIAL_EVERY else _NUM_TURNS * _TRIAL_LENGTH
        if expected_s < most_s and (self._has_caught_up(most_s) if self._backlog else self.failure is None):
            return self._do_at_once(work, kind)
        self._backlog[number] = expected_s
        return super().do(lambda: self._do_beside(work, kind, number), keep=keep)

    def _has_caught_up(self, most_s: float) -> bool:
        """Whether all earlier work is done, after a wait that is neither expected to take nor takes longer than `most_s`."""
        end_s = time.perf_counter() + most_s
        while self._backlog and sum(list(self._backlog.values())) < most_s and time.perf_counter() < end_s:
            time.sleep(0)  # yields the interpreter to the other thread
        return self.failure is None and not self._backlog

    def _do_at_once(self, work: Work, kind: object) -> float:
        begin_s = time.perf_counter()
        try:
            work()
        except Exception as error:  # the caller gets it like a failure in the thread
            self.failure = error
            self._when_failed()
        return self._note(kind, time.perf_counter() - begin_s)

    def _do_beside(self, work: Work, kind: object, number: int) -> None:
        if self.failure is not None:  # of work that ran in the calling thread
            return
        begin_s = time.perf_counter()
        work()
        self._note(kind, time.perf_counter() - begin_s)
        for done in [one for one in list(self._backlog) if one <= number]:  # also work that an interrupt kept from being queued
            del self._backlog[done]

    def _note(self, kind: object, taken_s: float) -> float:
        self._last_s[kind].append(taken_s)
        return taken_s

    def _round_trip_s(self) -> float:
        """Median time from handing the thread work until it is known to be done."""
        times_s = []
        for _ in range(_NUM_TRIPS):
            done, begin_s = threading.Lock(), time.perf_counter()
            done.acquire()
            self._given.put(done.release)
            done.acquire(timeout=_PATIENCE_S)
            times_s.append(time.perf_counter() - begin_s)
        return sorted(times_s)[_NUM_TRIPS // 2]


class InlineWorker(Worker):
    """Runs the same work at once in the calling thread, which gets failures directly."""

    is_beside = False

    def start(self) -> None:
        return None

    def do(self, work: Work, kind: object = None, keep: Work | None = None, is_urgent: bool = True) -> float:
        begin_s = time.perf_counter()
        work()
        return time.perf_counter() - begin_s

    def flush(self) -> None:
        return None

    def stop(self) -> None:
        return None


class _Thread(threading.Thread):
    """A thread whose end can be awaited repeatedly.

    CPython 3.11 and 3.12 consider a thread ended when a signal interrupts a wait for it. This class waits for a lock that the
    thread itself releases. An interrupt may keep the lock from being passed on to other waiters, so they poll as well. A thread
    that was never started counts as ended.
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
            del self._work  # as threading.Thread does: a reference to the thread must not keep its work alive
            self._has_ended = True
            self._running.release()

    def join(self, timeout: float | None = None) -> None:
        end_s = math.inf if timeout is None else time.perf_counter() + timeout
        while self.ident is not None and not self._has_ended and (left_s := end_s - time.perf_counter()) > 0:
            if self._running.acquire(timeout=min(left_s, _PATIENCE_S)):
                self._running.release()
        if self._has_ended:
            super().join(timeout)
