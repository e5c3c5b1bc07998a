"""Ends an engine that nobody holds any more, and stops one that is held when the process ends.

Garbage is collected inside any allocation of any thread, whatever locks that thread holds: there nothing may be waited for, and
no lock be taken. So all that happens there is that a thread which waits for it is told, and that thread does the rest.
"""

import atexit
import os
import sys
import weakref
from typing import Any

from finemoe.runtime.devices import DeviceMemories
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.session import Session
from finemoe.runtime.tiers import ExpertStore
from finemoe.runtime.worker import Worker

_living: set["Lifetime"] = set()


class Lifetime:
    """An engine's, from `begin` to `cancel`.

    Args:
        session: what the model and everything that works inside it hold, but no worker; without it nobody needs the others.
        matcher, memories: what is then stopped and given back; records: also closed, unless they are lent (None).
    """

    def __init__(self, session: Session, matcher: Matcher, memories: DeviceMemories, records: ExpertStore | None) -> None:
        self._session, self._matcher, self._memories, self._records = weakref.ref(session), matcher, memories, records
        self._keeper = Worker("finemoe-keeper", "the keeper")
        self._finalizer: weakref.finalize[..., Any] | None = None

    def begin(self) -> None:
        """Watch over the session."""
        session = self._session()
        assert session is not None
        self._keeper.start()
        _living.add(self)
        self._finalizer = weakref.finalize(session, self._keeper.do, self._end)
        self._finalizer.atexit = False

    def cancel(self) -> None:
        """The engine comes to its end itself; cancelling again is harmless."""
        if self._finalizer is not None:
            self._finalizer.detach()
        _living.discard(self)
        self._keeper.close()

    def abandon(self) -> None:
        """The process ends, perhaps while a thread generates: stop the workers, refuse that thread at its next layer, and let it
        say what it heard. Memory stays, which it may be reading and which goes with the process."""
        self._memories.abandon()
        self._matcher.close()
        session = self._session()
        if session is not None:
            session.say_farewell()

    def _end(self) -> None:
        """Stop the threads and give the memory back, but leave the model as it is: nobody has it any more."""
        _living.discard(self)
        try:
            self._matcher.close()
            self._memories.close()
            if self._records is not None:
                self._records.close()
        except Exception as error:
            print(f"finemoe: an engine that was dropped could not be ended: {error}", file=sys.stderr)
        self._keeper.stop()


@atexit.register
def end_all() -> None:
    """The process ends."""
    for lifetime in list(_living):
        try:
            lifetime.abandon()
        except Exception as error:  # the others are to hear of it all the same
            print(f"finemoe: an engine could not be stopped at the end of the process: {error}", file=sys.stderr)


os.register_at_fork(after_in_child=_living.clear)  # whose threads and memory are the parent's
