"""A measurement in parts: each is done once, written down at once, and left out by the next call.

A part that this machine cannot do is skipped with a reason, a part that fails or takes too long is named and does not stop the
others; neither counts as done. Every call writes a file of its own, so that several can run side by side, and so that what was
measured before the code was changed is neither lost nor taken for the new code's.
"""

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from finemoe.files import atomic_path
from finemoe.gpu_bench.alarm import Alarm, NearDeadline, OutOfTime
from finemoe.measured import TABLES, Skipped, write_table

Say = Callable[[str], None]
_LEAST_LIMIT_S = 30.0
_LIMIT = 5.0  # times what a part is expected to take


class NotHere(Exception):
    """This machine cannot do a part; the message says why."""


@dataclass(frozen=True)
class Part:
    """A piece of a measurement.

    Attributes:
        group, name: what it measures. seconds: a guess of how long it takes, without what must be made ready. run: measures, and
            returns rows of any of the tables. ready_s: how long it takes to make ready what is not at hand.
        is_of_code: what it finds is true of the code that was measured alone, and is found again once that has changed.
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


@dataclass(frozen=True)
class Outcome:
    """What became of a call: titles of what is left to do, and what failed or was skipped with reasons."""

    left: tuple[str, ...]
    failed: tuple[Skipped, ...]
    skipped: tuple[Skipped, ...]


class Bench:
    """Runs parts into a folder.

    Args:
        folder: where parts and tables are. digest: of settings and machine, so that what others measured is not mixed in.
        code: digest of the code that is measured.
    """

    def __init__(self, folder: Path, digest: str, code: str = "") -> None:
        self._folder, self._code, self._pattern = folder, code, f"parts-{digest}-*.json"
        self._path = _claimed(folder, digest)
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._mine: dict[str, Any] = {"code": code, "began": began, "begun": [], "done": {}, "missing": {}}
        self._write()

    def _calls(self) -> dict[Path, dict[str, Any]]:
        """Every call's file as it is now, in their order; others may be writing theirs."""
        paths = sorted(self._folder.glob(self._pattern))
        others = {path: path.read_text(encoding="utf-8") for path in paths if path != self._path}
        found = {path: json.loads(text) for path, text in others.items() if text} | {self._path: self._mine}
        return dict(sorted(found.items()))

    def _deadly(self) -> set[str]:
        """Parts with which the watchdog ended a call, or two calls ended in any way."""
        earlier = {path: call for path, call in self._calls().items() if path < self._path}
        begun = Counter(title for call in earlier.values() for title in call["begun"])
        hung = {title for path, call in earlier.items() if _has_hung(path) for title in call["begun"]}
        return hung | {title for title, count in begun.items() if count > 1}

    @property
    def stacks_path(self) -> Path:
        """Where this call's watchdog writes what hung."""
        return _stacks_of(self._path)

    def run(
        self,
        parts: Sequence[Part],
        minutes: float | None,
        say: Say,
        is_usable: Callable[[], bool] = lambda: True,
        alarm: Alarm | None = None,
        again: bool = False,
    ) -> Outcome:
        """Do what is not done yet, in order, but for parts that do not fit in the time; what ended a call comes last.

        Args:
            minutes: begin nothing that is expected to end later, but for the first part. is_usable: asked after a failure; if the
                device is beyond use, nothing more is tried. alarm: ends what takes too long, and keeps the deadline.
            again: whether what an earlier call has done is done once more.
        """
        alarm = alarm or Alarm()
        begin_s = time.monotonic()
        failed: list[Skipped] = []
        skipped: list[Skipped] = []
        left: list[str] = []
        has_tried = False
        waiting = [part for part in parts if again or not self._is_done(part)]
        deadly = self._deadly()
        waiting.sort(key=lambda part: part.title in deadly)
        for number, part in enumerate(waiting):
            left_s = alarm.usable_s if minutes is None else min(alarm.usable_s, 60 * minutes - (time.monotonic() - begin_s))
            is_due = not has_tried and alarm.left_s == float("inf")  # so that every call gets on, unless it must end in time
            if part.ready_s() + self.expected_s(part) > left_s and not is_due:
                left.append(part.title)
                self._missed(part, "no time yet")
                continue
            has_tried = True
            say(f"[{len(parts) - len(waiting) + number + 1}/{len(parts)}] {part.title}")
            try:
                self._do(part, alarm)
            except NotHere as reason:
                skipped.append(self._missed(part, str(reason)))
                say(f"{part.title}: skipped, {reason}")
            except NearDeadline:
                left.append(part.title)
                self._missed(part, "no time yet")
            except (Exception, OutOfTime) as error:
                failed.append(self._missed(part, f"{type(error).__name__}: {error}"))
                say(f"{part.title}: FAILED\n{traceback.format_exc()}")
                if not is_usable():
                    say("the device is beyond use; start again in a new process")
                    left += [one.title for one in waiting[number + 1 :] if self._missed(one, "not tried on a device beyond use")]
                    break
        return Outcome(tuple(left), tuple(failed), tuple(skipped))

    def rows(self) -> dict[str, list[Any]]:
        """Everything measured so far with these settings on this machine, by table, in the order first measured; what was
        measured again counts as it was found last."""
        latest: dict[str, Any] = {}
        for call in self._calls().values():
            is_same_code = call["code"] == self._code
            latest |= {title: one for title, one in call["done"].items() if is_same_code or not one["is_of_code"]}
        found: dict[str, list[Any]] = {name: [] for name in TABLES}
        for part in latest.values():
            for name, rows in part["rows"].items():
                found[name] += [TABLES[name](**row) for row in rows]
        return found

    def missing(self) -> list[Skipped]:
        """What no call has done, with the reason that was given last."""
        reasons: dict[str, str] = {}
        for path, call in self._calls().items():
            is_over = path < self._path  # a later one may still run
            reasons |= dict.fromkeys(call["begun"] if is_over else (), "a call ended while it ran") | call["missing"]
            for title in call["done"]:
                reasons.pop(title, None)
        return [_skipped(title, reason) for title, reason in reasons.items()]

    def calls(self) -> list[dict[str, Any]]:
        """When each call began, which code it measured and how many parts and seconds that took."""
        return [
            {
                "began": call["began"],
                "code": call["code"],
                "parts": len(call["done"]),
                "seconds": round(sum(one["seconds"] for one in call["done"].values()), 1),
            }
            for call in self._calls().values()
            if call["done"]
        ]

    def expected_s(self, part: Part) -> float:
        """How long a part takes: the guess, at the pace that its group's parts were found to have."""
        group = f"{part.group}: "
        paces = [
            one["seconds"] / one["guess"]
            for call in self._calls().values()
            for title, one in call["done"].items()
            if title.startswith(group) and one["guess"]
        ]
        return part.seconds * (median(paces) if paces else 1.0)

    def _is_done(self, part: Part) -> bool:
        calls = self._calls().values()
        return any(part.title in call["done"] and (call["code"] == self._code or not part.is_of_code) for call in calls)

    def _do(self, part: Part, alarm: Alarm) -> None:
        self._mine["begun"] = [part.title]
        self._write()
        begin_s, ready_s = time.monotonic(), part.ready_s()
        rows: dict[str, list[dict[str, Any]]] = {}
        try:
            with alarm.limit(max(_LEAST_LIMIT_S, _LIMIT * (part.seconds + ready_s))):
                for row in part.run():
                    rows.setdefault(type(row).__name__.lower(), []).append(vars(row))
        except (Exception, OutOfTime):
            self._mine["begun"] = []  # it failed by itself, and did not take the call with it
            raise
        self._mine["begun"] = []
        seconds = round(time.monotonic() - begin_s, 1)
        guess = None if ready_s else part.seconds  # how long it took to make ready is not known apart
        done = {"seconds": seconds, "guess": guess, "is_of_code": part.is_of_code, "rows": rows}
        self._mine["done"][part.title] = done
        self._mine["missing"].pop(part.title, None)
        self._write()
        measured = self.rows()
        for name in rows:
            write_table(measured[name], name, self._folder)

    def _missed(self, part: Part, reason: str) -> Skipped:
        self._mine["missing"][part.title] = reason
        self._write()
        return _skipped(part.title, reason)

    def _write(self) -> None:
        with atomic_path(self._path) as path:
            path.write_text(json.dumps(self._mine, indent=1), encoding="utf-8")


def _skipped(title: str, reason: str) -> Skipped:
    group, _, name = title.partition(": ")
    return Skipped(group, name, reason)


def _stacks_of(path: Path) -> Path:
    return path.with_suffix(".stacks.txt")


def _has_hung(path: Path) -> bool:
    """Whether the watchdog ended a call."""
    stacks = _stacks_of(path)
    return stacks.is_file() and stacks.stat().st_size > 0


def _claimed(folder: Path, digest: str) -> Path:
    """The first free name of a call's file, taken: several calls may begin at once."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"parts-{digest}-{number:02}.json"
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1
