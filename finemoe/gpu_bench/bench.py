"""A measurement in parts: each is done once, written down at once, and left out by the next call.

A part that this machine cannot do is skipped with a reason, a part that fails is named and does not stop the others; neither
counts as done.
"""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemoe.files import atomic_path
from finemoe.measured import TABLES, Skipped, write_table

Say = Callable[[str], None]


class NotHere(Exception):
    """This machine cannot do a part; the message says why."""


@dataclass(frozen=True)
class Part:
    """A piece of a measurement.

    Attributes:
        group, name: what it measures. minutes: expected at most, without what must be made ready. run: measures, and returns
            rows of any of the tables. ready_minutes: how long it takes to make ready what is not at hand.
    """

    group: str
    name: str
    minutes: float
    run: Callable[[], list[Any]]
    ready_minutes: Callable[[], float] = lambda: 0.0

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
        folder: where parts and tables are; digest: of settings and machine, so that what others measured is not mixed in.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder, self._digest = folder, digest
        self._path = folder / f"parts-{digest}.json"
        self._done: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}

    def run(
        self, parts: Sequence[Part], minutes: float | None, say: Say, is_usable: Callable[[], bool] = lambda: True
    ) -> Outcome:
        """Do what is not done yet, in order, until a part does not fit in the time; at least one part.

        Args:
            is_usable: asked after a failure; if the device is beyond use, nothing more is tried.
        """
        begin_s, has_tried = time.monotonic(), False
        failed: list[Skipped] = []
        skipped: list[Skipped] = []
        waiting = [part for part in parts if part.title not in self._done]
        while waiting:
            part = waiting[0]
            spent = (time.monotonic() - begin_s) / 60
            if minutes is not None and has_tried and spent + part.ready_minutes() + part.minutes > minutes:
                break
            waiting.pop(0)
            say(f"[{len(parts) - len(waiting)}/{len(parts)}] {part.title}")
            try:
                has_tried = True
                self._do(part)
            except NotHere as reason:
                skipped.append(Skipped(part.group, part.name, str(reason)))
                say(f"{part.title}: skipped, {reason}")
            except Exception as error:
                failed.append(Skipped(part.group, part.name, f"{type(error).__name__}: {error}"))
                say(f"{part.title}: FAILED\n{traceback.format_exc()}")
                if not is_usable():
                    say("the device is beyond use; start again in a new process")
                    break
        return Outcome(tuple(part.title for part in waiting), tuple(failed), tuple(skipped))

    def rows(self) -> dict[str, list[Any]]:
        """Everything measured so far with these settings on this machine, by table, in the order measured."""
        found: dict[str, list[Any]] = {name: [] for name in TABLES}
        for part in self._done.values():
            for name, rows in part["rows"].items():
                found[name] += [TABLES[name](**row) for row in rows]
        return found

    def _do(self, part: Part) -> None:
        begin_s = time.monotonic()
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in part.run():
            rows.setdefault(type(row).__name__.lower(), []).append(vars(row))
        self._done[part.title] = {"seconds": round(time.monotonic() - begin_s, 1), "rows": rows}
        with atomic_path(self._path) as path:
            path.write_text(json.dumps(self._done, indent=1), encoding="utf-8")
        for name, some in self.rows().items():
            if some:
                write_table(some, name, self._folder)
