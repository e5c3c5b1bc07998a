"""A measurement in parts: each part runs once, is recorded at once, and is skipped by later calls.

A part that this machine cannot measure is skipped with a reason. A part that fails or takes too long is reported and does not
stop the others. Neither counts as done.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finemoe.artifact.gpu_bench.alarm import Alarm, NearDeadline, OutOfTime
from finemoe.artifact.gpu_bench.calls import Calls
from finemoe.artifact.machines.rows import write_table
from finemoe.artifact.machines.schema import Skipped

Say = Callable[[str], None]
_LEAST_LIMIT_S = 30.0
_LIMIT = 5.0  # a part may take this multiple of its expected time


class NotHere(Exception):
    """This machine cannot measure a part; the message states why."""


@dataclass(frozen=True)
class Part:
    """A piece of a measurement.

    Attributes:
        group, name: what it measures.
        seconds: estimated time without preparation.
        run: measures, and returns rows of any of the tables.
        ready_s: estimates the time of the preparation that is still needed, in seconds.
        is_of_code: whether its result is valid only for the measured version of the code, so that it reruns after a change.
    """

    group: str
    name: str
    seconds: float
    run: Callable[[], list[Any]]
    ready_s: Callable[[], float] = lambda: 0.0
    is_of_code: bool = False

    @property
    def title(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass
class Outcome:
    """The outcome of a call: titles of the parts left, and the failed and skipped parts with reasons."""

    left: list[str] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


class Bench:
    """Runs parts and writes their results to a folder.

    Args:
        folder: folder of the tables.
        calls: the record of what this call and others completed.
        say: called with progress messages.
        alarm: ends parts that take too long, and keeps the deadline.
        minutes: start no part that is expected to end later than this, except for the first.
        is_usable: called after a failure; if it returns False, the remaining parts are not tried.
    """

    def __init__(
        self,
        folder: Path,
        calls: Calls,
        say: Say = print,
        alarm: Alarm | None = None,
        minutes: float | None = None,
        is_usable: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder, self._calls, self._say, self._is_usable = folder, calls, say, is_usable
        self._alarm = alarm or Alarm()
        self._end_s = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self._has_tried = False

    def run(self, parts: Sequence[Part], again: bool = False) -> Outcome:
        """Run pending parts in order, except those that do not fit into the time; parts that ended an earlier call come last.

        Args:
            parts: the parts of the measurement.
            again: whether to repeat parts that an earlier call completed.
        """
        outcome, deadly = Outcome(), self._calls.deadly()
        waiting = [part for part in parts if again or not self._calls.is_done(part.title, part.is_of_code)]
        waiting.sort(key=lambda part: part.title in deadly)
        for number, part in enumerate(waiting):
            if not self._fits(part):
                self._leave(part, outcome)
                continue
            self._say(f"[{len(parts) - len(waiting) + number + 1}/{len(parts)}] {part.title}")
            if not self._try(part, outcome):
                self._say("the device is unusable; run again in a new process")
                for one in waiting[number + 1 :]:
                    self._leave(one, outcome, "not tried on a device beyond use")
                break
        return outcome

    def expected_s(self, part: Part) -> float:
        """Expected seconds of a part: its estimate, scaled by the measured pace of its group."""
        return part.seconds * self._calls.pace(part.group)

    def _fits(self, part: Part) -> bool:
        """Whether there is time for a part. Without a deadline the first part always fits, so that every call makes progress."""
        is_due = not self._has_tried and self._alarm.left_s == float("inf")
        left_s = min(self._alarm.usable_s, self._end_s - time.monotonic())
        return is_due or part.ready_s() + self.expected_s(part) <= left_s

    def _leave(self, part: Part, outcome: Outcome, reason: str = "no time yet") -> None:
        outcome.left.append(part.title)
        self._calls.missed(part.title, reason)

    def _try(self, part: Part, outcome: Outcome) -> bool:
        """Run a part, or record why not; returns whether the device is still usable."""
        self._has_tried = True
        try:
            self._do(part)
        except NotHere as reason:
            outcome.skipped.append(self._calls.missed(part.title, str(reason)))
            self._say(f"{part.title}: skipped, {reason}")
        except NearDeadline:
            self._leave(part, outcome)
        except (Exception, OutOfTime) as error:
            outcome.failed.append(self._calls.missed(part.title, f"{type(error).__name__}: {error}"))
            self._say(f"{part.title}: FAILED\n{traceback.format_exc()}")
            return self._is_usable()
        return True

    def _do(self, part: Part) -> None:
        self._calls.begin(part.title)
        begin_s, ready_s = time.monotonic(), part.ready_s()
        rows: dict[str, list[dict[str, Any]]] = {}
        try:
            with self._alarm.limit(max(_LEAST_LIMIT_S, _LIMIT * (part.seconds + ready_s))):
                for row in part.run():
                    rows.setdefault(type(row).__name__.lower(), []).append(vars(row))
        except (Exception, OutOfTime):
            self._calls.end()
            raise
        self._calls.end()
        guess = None if ready_s else part.seconds  # the preparation is not timed separately
        self._calls.done(part.title, round(time.monotonic() - begin_s, 1), guess, part.is_of_code, rows)
        measured = self._calls.rows()
        for name in rows:
            write_table(measured[name], name, self._folder)
