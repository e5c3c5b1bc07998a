"""Admits one thread at a time to an attached model, however it enters; none after a fork or once the engine is closed."""

import os
import threading
import time
import weakref

from finemoe.errors import EngineError

_ONE_THREAD = (
    "another thread is inside this model's forward; an engine serves one thread at a time: "
    "take turns, or give each thread its own model and engine"
)
_FAREWELL_S = 2.0  # how long process exit waits for a generating thread to notice
_BETWEEN_FORWARDS_S = 0.5  # longest time a generating thread spends outside the forward


class Session:
    """The thread inside the model and its depth: in the model's forward, and within it in a layer's experts.

    A caller notes `depth` before `enter` and returns to it in a `finally`. Where an interrupt may strike right before that, an
    enclosing `finally` repeats it, which is harmless.

    Attributes:
        door: lock held while callers must wait, for example while an engine closes.
        is_closed: whether the engine is closed.
    """

    def __init__(self) -> None:
        self.door = threading.RLock()
        self.is_closed = False
        self._is_forked = False
        self._owner: int | None = None
        self._depth = 0
        self._last: tuple[threading.Thread, float] | None = None  # the last thread inside and when it left (time.monotonic)
        _sessions.add(self)

    @property
    def depth(self) -> int:
        """How deep the calling thread is inside; 0 means outside."""
        return self._depth if self._owner == threading.get_ident() else 0

    @property
    def is_used(self) -> bool:
        """Whether a thread is inside."""
        return self._owner is not None

    @property
    def is_anothers(self) -> bool:
        """Whether a thread other than the calling one is inside."""
        return self._owner not in (None, threading.get_ident())

    def enter(self) -> bool:
        """Enter the session, or go one level deeper.

        Returns:
            False if the session was closed meanwhile; the thread then remains outside.
        Raises:
            EngineError: another thread is inside, or this process was forked.
        """
        me = threading.get_ident()
        if self._owner == me and not self.is_closed:  # no other thread can have entered
            self._depth += 1
            return True
        self.require_process()  # before the door, which another thread may have held when this process was forked
        with self.door:
            if self.is_closed:
                return False
            self.require_turn()
            self._depth, self._owner = 1, me
            return True

    def leave(self, depth: int) -> None:
        """Return to a depth; at 0 other threads may enter. Has no effect outside the session, for example after a refusal."""
        if self._owner == threading.get_ident():
            self._depth = depth
            if not depth:
                self._last = threading.current_thread(), time.monotonic()
                self._owner = None  # last, because another thread may now enter

    def require_turn(self) -> None:
        """Raise an EngineError if another thread is inside."""
        if self.is_anothers:
            raise EngineError(_ONE_THREAD)

    def require_process(self) -> None:
        """Raise an EngineError in a process that was forked from the engine's process."""
        if self._is_forked:
            raise EngineError("a forked process has none of this engine's threads; offload the model in it, after the fork")

    def say_farewell(self) -> None:
        """At process exit, give a generating thread, which is refused at its next step, time to report the error."""
        thread, left_s = self._last or (None, 0.0)
        owner = next((one for one in threading.enumerate() if one.ident == self._owner), None)
        if owner is None and time.monotonic() - left_s < _BETWEEN_FORWARDS_S:
            owner = thread
        if owner is not None and owner.daemon and owner is not threading.current_thread():
            owner.join(_FAREWELL_S)

    def _note_fork(self) -> None:
        self._is_forked, self._owner = True, None


_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


def _note_fork() -> None:
    for session in list(_sessions):
        session._note_fork()


os.register_at_fork(after_in_child=_note_fork)
