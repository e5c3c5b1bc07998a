"""Ends an engine that is no longer referenced, and stops one that is still in use when the process ends.

Garbage is collected inside any allocation of any thread, whatever locks that thread holds. A finaliser must therefore neither
wait nor take a lock: it only notifies a waiting thread, which does the rest.
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
    """The lifetime of an engine, from `begin` to `cancel`.

    Args:
        session: referenced by the model and by everything that works inside it, but not by workers; without it, the rest is
            unused.
        matcher, memories: stopped and freed at the end.
        records: also closed, unless they are borrowed (None).
    """

    def __init__(self, session: Session, matcher: Matcher, memories: DeviceMemories, records: ExpertStore | None) -> None:
        self._session, self._matcher, self._memories, self._records = weakref.ref(session), matcher, memories, records
        self._keeper = Worker("finemoe-keeper", "the keeper")
        self._finalizer: weakref.finalize[..., Any] | None = None

    def begin(self) -> None:
        """Start watching the session."""
        session = self._session()
        assert session is not None
        self._keeper.start()
        _living.add(self)
        self._finalizer = weakref.finalize(session, self._keeper.do, self._end)
        self._finalizer.atexit = False

    def cancel(self) -> None:
        """The engine closes itself; cancelling again is harmless."""
        if self._finalizer is not None:
            self._finalizer.detach()
        _living.discard(self)
        self._keeper.close()

    def abandon(self) -> None:
        """At process exit, possibly while a thread generates: stop the workers, refuse that thread at its next layer, and let it
        report the error. Memory stays, since the thread may be reading it; it is freed with the process."""
        self._memories.abandon()
        self._matcher.close()
        session = self._session()
        if session is not None:
            session.say_farewell()

    def _end(self) -> None:
        """Stop the threads and free the memory, but leave the model as it is: it is no longer referenced."""
        _living.discard(self)
        try:
            self._matcher.close()
            self._memories.close()
            if self._records is not None:
                self._records.close()
        except Exception as error:
            print(f"finemoe: closing an unreferenced engine failed: {error}", file=sys.stderr)
        self._keeper.stop()


@atexit.register
def end_all() -> None:
    """Abandon every engine at process exit."""
    for lifetime in list(_living):
        try:
            lifetime.abandon()
        except Exception as error:  # the other engines must still be abandoned
            print(f"finemoe: stopping an engine at process exit failed: {error}", file=sys.stderr)


os.register_at_fork(after_in_child=_living.clear)  # their threads and memory belong to the parent
