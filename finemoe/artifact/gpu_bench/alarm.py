"""An end to what takes too long: first an exception, and where nobody hears it, every thread's stack and the end of the process.

A call that waits for a device which never answers cannot be interrupted; the watchdog ends the process then, and what was written
before stays.
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

_GRACE_S = 20.0  # for giving a model's memory back after the exception
_LAST_S = 4.0  # before a deadline, for writing the tables once more and ending


def age_s() -> float:
    """How long this process has been there: importing PyTorch takes seconds of a deadline."""
    try:
        began = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:  # not Linux
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


class OutOfTime(BaseException):
    """A part took longer than it may. No Exception, since code that handles some of these must not take it for one of them."""


class NearDeadline(OutOfTime):
    """Nothing is wrong with the part, but the process must end now."""


class Alarm:
    """Ends parts, and the process.

    Args:
        deadline_s: seconds from now after which this process must have ended by itself; None never ends it.
    """

    def __init__(self, deadline_s: float | None = None) -> None:
        self._end_s = None if deadline_s is None else time.monotonic() + deadline_s
        self._log: IO[str] = sys.stderr

    def write_to(self, log: IO[str]) -> None:
        """Watch from now on, and write stacks to an open file instead of standard error."""
        self._log = log
        self._watch(None)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self._end_s is None else self._end_s - time.monotonic()

    @property
    def usable_s(self) -> float:
        """Seconds that a part may still take, so that the process has time to end."""
        return self.left_s if self.left_s == float("inf") else self.left_s - _LAST_S - min(_GRACE_S, self.left_s / 10)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raise in the main thread once the block has taken so long, or once the deadline is near.

        Raises:
            OutOfTime: it has.
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
        """Nothing ends the process any more."""
        faulthandler.cancel_dump_traceback_later()

    def _watch(self, seconds: float | None) -> None:
        """End the process after so many seconds, and in any case at the deadline; there is always time to end by itself."""
        seconds = max(_LAST_S, min(self.left_s, float("inf") if seconds is None else seconds))
        if seconds == float("inf"):
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._log)
