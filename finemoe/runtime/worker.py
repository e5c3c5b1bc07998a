"""Who does the work that inference leaves to others: a thread, or the caller itself."""

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
# At the interpreter's lock, while one thread infers and the other searches: 25 us of work cost 70 us more beside.
_NUM_TURNS = 12
_NUM_LAST = (
    8  # measurements of a kind, of which the least is expected of the next: others meet cold caches, or wait for the interpreter
)
_UNKNOWN = (math.inf,)
_TRIAL_EVERY, _TRIAL_LENGTH = 16, 10  # how often, and how many times as long


class Worker:
    """Does what it is given, in that order, in a daemon thread from `start` on; after the first failure it does nothing more.

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

    def do(self, work: Work, kind: object = None, keep: Work | None = None, is_urgent: bool = True) -> float:
        """Give it something to do, from any thread and also while garbage is collected.

        Args:
            kind: of work that takes alike; is_urgent: whether anybody waits for it. For whoever chooses by that.
            keep: called first if the work is not done at once, so that what it reads outlasts the caller's next step.
        Returns:
            How long the caller has waited for it to be done, in seconds.
        """
        if keep is not None:
            keep()
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
    overtakes what was given before: what is short waits for it if that is short, too, and else is handed over behind it.
    """

    def __init__(self, name: str, title: str, when_failed: Work = lambda: None) -> None:
        super().__init__(name, title, when_failed)
        self._num_given = 0
        # What the last works of each kind took.
        self._last_s: defaultdict[object, deque[float]] = defaultdict(lambda: deque(_UNKNOWN, maxlen=_NUM_LAST))
        self._backlog: dict[int, float] = {}  # what is given and not done, by number: how long it is expected to take
        self._trip_s = 0.0

    def start(self) -> None:
        super().start()
        self._trip_s = self._round_trip_s()

    def do(self, work: Work, kind: object = None, keep: Work | None = None, is_urgent: bool = True) -> float:
        """As in Worker. What is not known yet is handed over, as is what nobody waits for unless it takes less than giving it
        away; what seems long only because the thread had to wait is tried at once from time to time."""
        self._num_given = number = self._num_given + 1
        expected_s, most_s = min(self._last_s[kind]), self._trip_s
        if is_urgent:
            most_s *= _NUM_TURNS if number % _TRIAL_EVERY else _NUM_TURNS * _TRIAL_LENGTH
        if expected_s < most_s and (self._has_caught_up(most_s) if self._backlog else self.failure is None):
            return self._do_at_once(work, kind)
        self._backlog[number] = expected_s
        return super().do(lambda: self._do_beside(work, kind, number), keep=keep)

    def _has_caught_up(self, most_s: float) -> bool:
        """Whether all is done that was given before, after a wait that neither is expected to take longer nor does."""
        end_s = time.perf_counter() + most_s
        while self._backlog and sum(list(self._backlog.values())) < most_s and time.perf_counter() < end_s:
            time.sleep(0)  # lets the other thread have the interpreter
        return self.failure is None and not self._backlog

    def _do_at_once(self, work: Work, kind: object) -> float:
        begin_s = time.perf_counter()
        try:
            work()
        except Exception as error:  # the caller hears of it as of a failure beside
            self.failure = error
            self._when_failed()
        return self._note(kind, time.perf_counter() - begin_s)

    def _do_beside(self, work: Work, kind: object, number: int) -> None:
        if self.failure is not None:  # of something that was done at once
            return
        begin_s = time.perf_counter()
        work()
        self._note(kind, time.perf_counter() - begin_s)
        for done in [one for one in list(self._backlog) if one <= number]:  # also one that an interrupt kept from being given
            del self._backlog[done]

    def _note(self, kind: object, taken_s: float) -> float:
        self._last_s[kind].append(taken_s)
        return taken_s

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

    def do(self, work: Work, kind: object = None, keep: Work | None = None, is_urgent: bool = True) -> float:
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
