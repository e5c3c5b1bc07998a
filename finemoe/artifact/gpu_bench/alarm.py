"""Ends work that takes too long: first with an exception; if that has no effect, with every thread's stack and the process's end.

A call that waits for a device that never answers cannot be interrupted. The watchdog then ends the process, and everything
written before is kept.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

_GRACE_S = 20.0  # to free a model's memory after the exception
_LAST_S = 4.0  # before a deadline, to write the tables once more and exit


def age_s() -> float:
    """Age of this process in seconds: importing PyTorch uses up seconds of a deadline."""
    try:
        began = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:  # not Linux
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


class OutOfTime(BaseException):
    """A part took longer than allowed. Not an `Exception`, so that code that handles exceptions does not catch it."""


class NearDeadline(OutOfTime):
    """The process must end now; the part itself is not at fault."""


class Alarm:
    """Ends parts, and the process.

    Args:
        deadline_s: seconds from now at which this process must have ended; None means no deadline.
    """

    def __init__(self, deadline_s: float | None = None) -> None:
        self._end_s = None if deadline_s is None else time.monotonic() + deadline_s
        self._log: IO[str] = sys.stderr

    def write_to(self, log: IO[str]) -> None:
        """Start the watchdog, which writes stacks to this open file instead of standard error."""
        self._log = log
        self._watch(None)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self._end_s is None else self._end_s - time.monotonic()

    @property
    def usable_s(self) -> float:
        """Seconds that a part may still use, leaving the process time to exit."""
        return self.left_s if self.left_s == float("inf") else self.left_s - _LAST_S - min(_GRACE_S, self.left_s / 10)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raise in the main thread when the block has run this long, or when the deadline is near.

        Args:
            seconds: limit of the block.
        Raises:
            OutOfTime: the limit was reached.
        """
        kind = OutOfTime if seconds <= self.usable_s else NearDeadline
        seconds = max(0.1, min(seconds, self.usable_s))

        def ring(number: int, frame: FrameType | None) -> None:
            raise kind(f"not done after {seconds:.0f} s")

        previous = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        self._watch(seconds + _GRACE_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
            self._watch(None)

    def off(self) -> None:
        """Stop the watchdog."""
        faulthandler.cancel_dump_traceback_later()

    def _watch(self, seconds: float | None) -> None:
        """End the process after this many seconds, and in any case at the deadline; there is always time for a regular exit."""
        seconds = max(_LAST_S, min(self.left_s, float("inf") if seconds is None else seconds))
        if seconds == float("inf"):
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._log)
