"""Ctrl-C at moments that must not be cut in two."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Attachable(Protocol):
    """Something put on a model. `detach` takes away as much of it as is there, also where `attach` broke off, and may be called
    again."""

    def attach(self) -> None: ...

    def detach(self) -> None: ...


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let an interrupt wait until the block is done; a second one is heard at once, should the block hang."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    came: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(frame)
        if len(came) > 1:
            previous(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        previous(signal.SIGINT, came[0])


def while_attached(thing: Attachable, function: Callable[[], Result]) -> Result:
    """What a function returns that runs while `thing` is attached; whatever moment an interrupt comes at, it is detached."""
    try:
        try:
            with interrupts_wait():
                thing.attach()
            return function()
        finally:
            with interrupts_wait():
                thing.detach()
    finally:  # once more, should the interrupt have come right before it
        with interrupts_wait():
            thing.detach()
