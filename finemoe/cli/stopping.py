"""Ctrl-C while text is generated: the first one ends the text at the next token, the second one ends the program at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STDERR = 2
_TOLD = b"\nfinemoe: stopping at the next token; Ctrl-C again ends at once\n"


class StopAsked:
    """A stopping criterion of `generate`: stop once the user asks.

    Attributes:
        is_asked: whether the user has pressed Ctrl-C.
    """

    def __init__(self) -> None:
        self.is_asked = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids.new_full((len(input_ids),), self.is_asked).bool()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first Ctrl-C in the block as the wish to stop; a second one interrupts, as usual."""
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(previous):
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self.is_asked:
                previous(number, frame)
            self.is_asked = True
            if sys.stderr.isatty():
                os.write(_STDERR, _TOLD)  # a signal may come while Python itself writes

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
