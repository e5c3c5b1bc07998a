"""Who is inside an attached model: one thread at a time, whichever way it comes in; nobody after a fork or once it is closed."""

import os
import threading
import time
import weakref

from finemoe.errors import EngineError

_ONE_THREAD = (
    "another thread is inside this model's forward; an engine serves one thread at a time: "
    "take turns, or give each thread a model and an engine of its own"
)
_FAREWELL_S = 2.0  # that the end of the process waits for a thread that generates to hear of it
_BETWEEN_FORWARDS_S = 0.5  # that a thread which generates is outside at most


class Session:
    """The thread that is inside, and how deep: in the model's forward, and there in a layer's experts.

    Whoever comes in notes `depth` before, and goes back to it in a `finally`. Where one interrupt may strike right before that,
    another `finally` around it does so again, which is harmless.

    Attributes:
        door: held for as long as whoever comes must wait, as while an engine closes. is_closed: whether it has.
    """

    def __init__(self) -> None:
        self.door = threading.RLock()
        self.is_closed = False
        self._is_forked = False
        self._owner: int | None = None
        self._depth = 0
        self._last: tuple[threading.Thread, float] | None = None  # who was inside, and until when (time.monotonic)
        _sessions.add(self)

    @property
    def depth(self) -> int:
        """How deep the calling thread is inside; 0 is outside."""
        return self._depth if self._owner == threading.get_ident() else 0

    @property
    def is_used(self) -> bool:
        """Whether some thread is inside."""
        return self._owner is not None

    @property
    def is_anothers(self) -> bool:
        """Whether a thread is inside, and not the calling one."""
        return self._owner not in (None, threading.get_ident())

    def enter(self) -> bool:
        """Come in, perhaps further.

        Returns:
            False if it was closed meanwhile: then nobody has come in.
        Raises:
            EngineError: another thread is inside, or this process was forked.
        """
        me = threading.get_ident()
        if self._owner == me and not self.is_closed:  # whom nobody can have overtaken
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
        """Go back to a depth; at 0 others may come in. Whoever is not inside, as after a refusal, stays where he is."""
        if self._owner == threading.get_ident():
            self._depth = depth
            if not depth:
                self._last = threading.current_thread(), time.monotonic()
                self._owner = None  # last of all: then another thread may come in

    def require_turn(self) -> None:
        """Raise an EngineError if another thread is inside."""
        if self.is_anothers:
            raise EngineError(_ONE_THREAD)

    def require_process(self) -> None:
        """Raise an EngineError in a process that was forked from the engine's."""
        if self._is_forked:
            raise EngineError("a forked process has none of this engine's threads; offload the model there, after the fork")

    def say_farewell(self) -> None:
        """The process ends: let a thread that generates, which is refused at its next step, say what it heard."""
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
