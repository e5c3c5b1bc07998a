"""A fake CUDA driver whose copies are really late: its link's stream is a thread, which does one thing after the other."""

import ctypes
import queue
import random
import threading
import time
import weakref
from typing import Any

from tests.runtime.fake_driver import COMPUTE, LINK, FakeDriver

_WAIT_S = 30.0


class LateDriver(FakeDriver):
    """Compute happens in the thread that issues it, so that its stream is never behind; what it waits for it waits for at once.

    Args:
        seed: of the delays. most_s: the longest delay before a copy's bytes move.
    """

    def __init__(self, seed: int, most_s: float) -> None:
        super().__init__()
        self._random, self._most_s = random.Random(seed), most_s
        self._over: dict[int, threading.Event] = {}  # by event: that it was reached where it was recorded last
        self._given: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=_work, args=(self._given,), name="late-driver", daemon=True)
        thread.start()
        weakref.finalize(self, self._given.put, None)

    def push_context(self, context: int) -> None:
        return None

    def pop_context(self, found: Any) -> None:
        return None

    def copy(self, sink: int, source: int, size: int, stream: int) -> None:
        assert stream == LINK
        delay_s = self._random.random() * self._most_s if self._random.random() < 0.1 else 0.0
        self._given.put(lambda: (time.sleep(delay_s), ctypes.memmove(sink, source, size)))

    def record(self, event: int, stream: int) -> None:
        reached = self._over[event] = threading.Event()
        if stream == COMPUTE:
            reached.set()
        else:
            self._given.put(reached.set)

    def synchronize(self, event: int) -> None:
        assert self._over[event].wait(_WAIT_S)

    def wait_event(self, stream: int, event: int, flags: int) -> None:
        reached = self._over.get(event)
        if reached is not None:  # as with CUDA, who waits for what was never recorded waits for nothing
            if stream == COMPUTE:
                assert reached.wait(_WAIT_S)
            else:
                self._given.put(lambda: reached.wait(_WAIT_S))


def _work(given: Any) -> None:
    while (work := given.get()) is not None:
        work()
