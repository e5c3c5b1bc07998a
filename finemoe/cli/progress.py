"""Progress on standard error, for a person at a terminal: what a command does, for how long, and what is left of it.

Nothing is shown where standard error is no terminal, or with --json, so that logs and pipes hold results alone.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLEAR = "\r\x1b[K"
_EVERY_S = 0.5
_FEW = 3  # kernels, or percent: an estimate from less would mislead


def is_watched(as_json: bool = False) -> bool:
    """Whether standard error is a terminal, and text is printed instead of JSON."""
    return not as_json and sys.stderr.isatty()


@contextmanager
def stage(text: str, is_shown: bool, share: Callable[[], float | None] = lambda: None) -> Iterator[None]:
    """Show one line while the block runs: the text, the time taken, and the time left where it can be told.

    Args:
        is_shown: False shows nothing.
        share: how much of the work is done, from 0 to 1; None while that is unknown.
    """
    if not is_shown:
        yield
        return
    with _ticking(text, share), _compiling_named():
        yield


@contextmanager
def compiling_shown(is_shown: bool) -> Iterator[None]:
    """Show, while the block runs, when it compiles: that happens once per installation and takes about a minute."""
    if not is_shown:
        yield
        return
    with _compiling_named():
        yield


@contextmanager
def _ticking(text: str, share: Callable[[], float | None]) -> Iterator[None]:
    begin, is_done = time.monotonic(), threading.Event()

    def tick() -> None:
        while not is_done.wait(_EVERY_S):
            if not _compiled:
                _show(_line(text, time.monotonic() - begin, share()))

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
        _show("")


_compiled: list[str] = []  # what compiles right now: its line has precedence


@contextmanager
def _compiling_named() -> Iterator[None]:
    try:
        from numba.core import event
    except Exception:  # without Numba nothing is compiled; what is wrong with it, finemoe.compiling reports
        yield
        return

    class Listener(event.Listener):
        def __init__(self) -> None:
            self.count, self.depth, self.begin = 0, 0, 0.0

        def on_start(self, event: Any) -> None:
            self.depth += 1
            if self.depth == 1:
                self.count += 1
                self.begin = self.begin or time.monotonic()
                taken = time.monotonic() - self.begin
                _compiled.append(f"compiling, once per installation, about a minute: function {self.count} ({_minutes(taken)})")
                _show(_compiled[-1])

        def on_end(self, event: Any) -> None:
            self.depth -= 1
            if self.depth == 0 and _compiled:
                _compiled.pop()
                _show("")

    with event.install_listener("numba:compile", Listener()):
        yield


def share_read(path: Path) -> Callable[[], float | None]:
    """How much of a file this process has read, by the position of its open descriptor (on Linux)."""
    target = str(path.resolve())
    size = path.stat().st_size if path.is_file() else 0

    def share() -> float | None:
        try:
            for descriptor in os.listdir("/proc/self/fd"):
                if os.path.realpath(f"/proc/self/fd/{descriptor}") == target:
                    position = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split(maxsplit=2)[1]
                    return int(position) / size if size else None
        except (OSError, ValueError, IndexError):  # closed meanwhile, or a system without /proc
            return None
        return None

    return share


def _line(text: str, taken_s: float, share: float | None) -> str:
    if share is None or not _FEW / 100 < share < 1:
        return f"{text} ({_minutes(taken_s)})"
    return f"{text}: {share:.0%} ({_minutes(taken_s)}, {_minutes(taken_s / share * (1 - share))} left)"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _show(text: str) -> None:
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(_CLEAR + text[:width])
    sys.stderr.flush()
