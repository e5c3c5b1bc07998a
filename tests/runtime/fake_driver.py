"""A CUDA driver of this project's own: functions in C by address, as the link calls them, that write down what they are asked."""

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

from finemoe.runtime.cuda_driver import CudaDriver
from finemoe.runtime.cuda_link import CudaLink

CONTEXT, LINK, COMPUTE = 11, 22, 33  # handles
_FIRST_EVENT = 1 << 20


class FakeDriver:
    """Copies are done at once, wherever they may not yet be over.

    Args:
        fails: error numbers by function (see CudaDriver).
    Attributes:
        log: every call, in order. destroyed: events given back.
    """

    def __init__(self, fails: Mapping[str, int] = {}) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.destroyed: list[int] = []
        self._fails, self._num_events = fails, 0
        self._kept: list[Any] = []
        p, i = ctypes.c_int64, ctypes.c_int
        self.driver = CudaDriver(
            push_context=self._function("push_context", self.push_context, p),
            pop_context=self._function("pop_context", self.pop_context, ctypes.POINTER(p)),
            copy=self._function("copy", self.copy, p, p, p, p),
            record=self._function("record", self.record, p, p),
            synchronize=self._function("synchronize", self.synchronize, p),
            wait_event=self._function("wait_event", self.wait_event, p, p, i),
            create_event=self._function("create_event", self.create_event, ctypes.POINTER(p), i),
            destroy_event=self._function("destroy_event", self.destroyed.append, p),
            get_context=self._function("get_context", lambda found: None, ctypes.POINTER(p)),
            finish=self._function("finish", lambda: self.log.append(("host waits for all",))),
            describe=self._function("describe", self.describe, i, ctypes.POINTER(ctypes.c_char_p)),
        )

    def link(self) -> CudaLink:
        """A link over it."""
        return CudaLink(self.driver, CONTEXT, LINK, lambda: COMPUTE, kept=self)

    def push_context(self, context: int) -> None:
        self.log.append(("enter", context))

    def pop_context(self, found: Any) -> None:
        found[0] = CONTEXT
        self.log.append(("leave",))

    def copy(self, sink: int, source: int, size: int, stream: int) -> None:
        self.log.append(("copy", sink, size, stream))
        ctypes.memmove(sink, source, size)

    def record(self, event: int, stream: int) -> None:
        self.log.append(("record", event, stream))

    def synchronize(self, event: int) -> None:
        self.log.append(("host waits", event))

    def wait_event(self, stream: int, event: int, flags: int) -> None:
        assert flags == 0
        self.log.append(("stream waits", stream, event))

    def create_event(self, found: Any, flags: int) -> None:
        self._num_events += 1
        found[0] = _FIRST_EVENT + self._num_events

    def describe(self, error: int, found: Any) -> None:
        found[0] = {700: b"an illegal address"}.get(error, b"unknown")

    def _function(self, name: str, does: Callable[..., object], *kinds: Any) -> int:
        def call(*arguments: Any) -> int:
            if name in self._fails:
                return self._fails[name]
            does(*arguments)
            return 0

        made = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(call)
        self._kept.append(made)
        return ctypes.cast(made, ctypes.c_void_p).value or 0
