"""The requests that the server holds: whether they wait or run, what they have generated, and whether to give them up."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from finemoe.serving.refusals import Cancelled

CURRENT: ContextVar["RunningRequest"] = ContextVar("finemoe_request")  # of the asyncio task that answers


class RunningRequest:
    """One request from its arrival to its answer.

    Args:
        endpoint: its path, such as "/v1/completions".
    Attributes:
        id: its number, in the answer and in its headers.
        options: the checked fields of its body; empty before they are read.
        has_begun: whether its prompt was accepted for generation. has_run: whether the model has seen it.
        failure: what ended its generation, or None.
        generation: its work in the generating thread, or None before that was given.
        on_cancel: called with the reason when it is given up, in any thread; None if `generate` notices by itself.
        prompt_tokens, generated_tokens: how many so far.
        ttft_s: from its arrival to the first token; None before it.
    """

    def __init__(self, endpoint: str) -> None:
        self.id, self.endpoint = uuid.uuid4().hex, endpoint
        self.options: dict[str, Any] = {}
        self.has_begun = self.is_computing = self.has_run = False
        self.failure: Exception | None = None
        self.generation: Future[Any] | None = None
        self.on_cancel: Callable[[str], None] | None = None
        self.prompt_tokens = self.generated_tokens = 0
        self.ttft_s: float | None = None
        self.token_times_s: list[float] = []  # between a token and the one before it
        self._arrived_s = self._last_s = time.perf_counter()
        self._reason: str | None = None

    def cancel(self, reason: str) -> None:
        """Give the request up: `generate` ends before its next layer, a batch goes on without it."""
        self._reason = self._reason or reason
        if self.on_cancel is not None:
            self.on_cancel(self._reason)

    @property
    def stops(self) -> list[str]:
        """The texts that end its answer, and are no part of it."""
        stop = self.options.get("stop") or []
        return [stop] if isinstance(stop, str) else list(stop)

    @property
    def is_cancelled(self) -> bool:
        """Whether it was given up."""
        return self._reason is not None

    def require_wanted(self) -> None:
        """Raise Cancelled if it was given up."""
        if self._reason is not None:
            raise Cancelled(self._reason)

    async def until_over(self) -> None:
        """Wait until the generating thread is done with it, which may be later than its answer."""
        if self.generation is not None:
            loop, is_over = asyncio.get_running_loop(), asyncio.Event()
            self.generation.add_done_callback(lambda _: loop.call_soon_threadsafe(is_over.set))
            await is_over.wait()

    def note_tokens(self, count: int) -> None:
        """Count generated tokens."""
        now_s = time.perf_counter()
        if self.ttft_s is None:
            self.ttft_s = now_s - self._arrived_s
        elif count:
            self.token_times_s += [(now_s - self._last_s) / count] * count
        self._last_s = now_s
        self.generated_tokens += count


class RunningRequests:
    """All requests that are waiting or computing. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock, self._requests = threading.RLock(), set[RunningRequest]()  # a signal may strike while its thread has it
        self._refusing: str | None = None

    @contextmanager
    def one_more(self, endpoint: str) -> Iterator[RunningRequest]:
        """A request that is here during the block."""
        request = RunningRequest(endpoint)
        with self._lock:
            self._requests.add(request)
            if self._refusing is not None:
                request.cancel(self._refusing)
        try:
            yield request
        finally:
            with self._lock:
                self._requests.remove(request)

    def cancel_all(self, reason: str) -> None:
        """Give up all requests, and those that still come."""
        with self._lock:
            self._refusing = reason
            for request in self._requests:
                request.cancel(reason)

    def requests(self) -> list[RunningRequest]:
        """Those that are here."""
        with self._lock:
            return list(self._requests)

    def counts(self) -> tuple[int, int]:
        """How many compute, and how many wait for their turn."""
        accepted = [request for request in self.requests() if request.has_begun]
        computing = sum(request.is_computing for request in accepted)
        return computing, len(accepted) - computing
