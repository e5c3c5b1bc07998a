"""The results of each call of a measurement, in one file per call.

Several calls can run concurrently. Results from before a change of the code are kept, and not mistaken for those of the new code.
"""

import json
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from finemoe.artifact.machines.schema import TABLES, Skipped
from finemoe.errors import FinemoeError
from finemoe.files import write_text


class Calls:
    """The calls in one folder, including this one.

    Args:
        folder: folder of the files.
        digest: digest of settings and machine, so that other measurements are not mixed in.
        code: digest of the code that this call measures.
    """

    def __init__(self, folder: Path, digest: str, code: str = "") -> None:
        self._folder, self._code, self._pattern = folder, code, f"parts-{digest}-*.json"
        self._path = _claimed(folder, digest)
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._mine: dict[str, Any] = {"code": code, "began": began, "begun": [], "done": {}, "missing": {}}
        self._write()

    @property
    def stacks_path(self) -> Path:
        """File to which this call's watchdog writes the stacks of a hang."""
        return _stacks_of(self._path)

    def begin(self, title: str) -> None:
        """Record that a part has started."""
        self._mine["begun"] = [title]
        self._write()

    def end(self) -> None:
        """Record that it has ended, in any way, without ending the call."""
        self._mine["begun"] = []

    def done(
        self, title: str, seconds: float, guess: float | None, is_of_code: bool, rows: dict[str, list[dict[str, Any]]]
    ) -> None:
        """Record the results of a part.

        Args:
            title: title of the part.
            seconds: time it took.
            guess: expected seconds, or None if they say nothing about its pace.
            is_of_code: see `Part`.
            rows: results by table.
        """
        self._mine["done"][title] = {"seconds": seconds, "guess": guess, "is_of_code": is_of_code, "rows": rows}
        self._mine["missing"].pop(title, None)
        self._write()

    def missed(self, title: str, reason: str) -> Skipped:
        """Record why a part was not measured."""
        self._mine["missing"][title] = reason
        self._write()
        return _skipped(title, reason)

    def is_done(self, title: str, is_of_code: bool) -> bool:
        """Whether any call completed a part, with this code if that matters."""
        calls = self._all().values()
        return any(title in call["done"] and (call["code"] == self._code or not is_of_code) for call in calls)

    def deadly(self) -> set[str]:
        """Parts during which the watchdog ended a call, or two calls ended in any way."""
        earlier = {path: call for path, call in self._all().items() if path < self._path}
        begun = Counter(title for call in earlier.values() for title in call["begun"])
        hung = {title for path, call in earlier.items() if _has_hung(path) for title in call["begun"]}
        return hung | {title for title, count in begun.items() if count > 1}

    def pace(self, group: str) -> float:
        """Median ratio of actual to estimated time over a group's parts; 1 if unknown."""
        paces = [
            one["seconds"] / one["guess"]
            for call in self._all().values()
            for title, one in call["done"].items()
            if title.startswith(f"{group}: ") and one["guess"]
        ]
        return median(paces) if paces else 1.0

    def rows(self) -> dict[str, list[Any]]:
        """Everything measured so far with these settings on this machine, by table, in the order of the first measurement; a
        repeated measurement replaces the earlier one."""
        latest: dict[str, Any] = {}
        for call in self._all().values():
            is_same_code = call["code"] == self._code
            latest |= {title: one for title, one in call["done"].items() if is_same_code or not one["is_of_code"]}
        found: dict[str, list[Any]] = {name: [] for name in TABLES}
        for part in latest.values():
            for name, rows in part["rows"].items():
                found[name] += [TABLES[name](**row) for row in rows]
        return found

    def missing(self) -> list[Skipped]:
        """The parts that no call completed, each with the latest reason."""
        reasons: dict[str, str] = {}
        for path, call in self._all().items():
            is_over = path < self._path  # a later call may still be running
            reasons |= dict.fromkeys(call["begun"] if is_over else (), "a call ended while it ran") | call["missing"]
            for title in call["done"]:
                reasons.pop(title, None)
        return [_skipped(title, reason) for title, reason in reasons.items()]

    def summaries(self) -> list[dict[str, Any]]:
        """For each call: when it began, the code it measured, and its number of parts and seconds."""
        return [
            {
                "began": call["began"],
                "code": call["code"],
                "parts": len(call["done"]),
                "seconds": round(sum(one["seconds"] for one in call["done"].values()), 1),
            }
            for call in self._all().values()
            if call["done"]
        ]

    def _all(self) -> dict[Path, dict[str, Any]]:
        """The current file of every call, in order; other calls may be writing theirs."""
        others = {path: _read(path) for path in sorted(self._folder.glob(self._pattern)) if path != self._path}
        found = {path: call for path, call in others.items() if call} | {self._path: self._mine}
        return dict(sorted(found.items()))

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._mine, indent=1))


def _read(path: Path) -> dict[str, Any]:
    """A call's file; empty if the call has claimed its name but not yet written it.

    Raises:
        FinemoeError: the file is damaged.
    """
    try:
        call: Any = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError) as error:
        raise FinemoeError(f"{path}: damaged ({error}); the results of that call are lost; move the file away") from error
    if not isinstance(call, dict) or (call and not {"code", "began", "begun", "done", "missing"} <= set(call)):
        raise FinemoeError(f"{path}: not the file of a call; move it away")
    return call


def _skipped(title: str, reason: str) -> Skipped:
    group, _, name = title.partition(": ")
    return Skipped(group, name, reason)


def _stacks_of(path: Path) -> Path:
    return path.with_suffix(".stacks.txt")


def _has_hung(path: Path) -> bool:
    """Whether the watchdog ended the call."""
    stacks = _stacks_of(path)
    return stacks.is_file() and stacks.stat().st_size > 0


def _claimed(folder: Path, digest: str) -> Path:
    """Claim the first free name for a call's file; several calls may start at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"parts-{digest}-{number:03}.json"
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1
