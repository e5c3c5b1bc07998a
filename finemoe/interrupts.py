"""Defer Ctrl-C during operations that must not be interrupted halfway."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Attachable(Protocol):
    """Something that can be attached to a model. `detach` removes whatever is attached, even after a failed `attach`, and may be
    called repeatedly."""

    def attach(self) -> None: ...

    def detach(self) -> None: ...


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Defer an interrupt until the block has finished; a second one takes effect at once, in case the block hangs."""
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
    """Run a function while `thing` is attached and return its result; `thing` is detached even if an interrupt arrives."""
    try:
        try:
            with interrupts_wait():
                thing.attach()
            return function()
        finally:
            with interrupts_wait():
                thing.detach()
    finally:  # again, in case an interrupt arrived just before the first attempt
        with interrupts_wait():
            thing.detach()
