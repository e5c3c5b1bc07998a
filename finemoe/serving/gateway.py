"""Every request passes here first: keys are checked, clients that hang up are noticed, streams are ended as OpenAI ends them."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from finemoe.serving.metrics import Metrics
from finemoe.serving.refusals import Refusal, refusal_of
from finemoe.serving.running import CURRENT, RunningRequest, RunningRequests

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
STREAMS_END_WITH_DONE = ("/v1/chat/completions", "/v1/completions")
HUNG_UP = 499  # the status under which a request without an answer is counted
_OPEN_TO_ALL = ("/health",)
_MOST_BYTES = 32 << 20
_DONE = b"data: [DONE]\n\n"
_STREAMED_ERROR = b'data: {"error": "'  # how Transformers' handlers begin an error, whose text they do not escape

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gateway:
    """An ASGI application around the server's.

    Args:
        app: the application. running: where requests are noted. metrics: counts them.
        api_key: what clients must send as a bearer token; None admits all.
        is_engine_usable: whether the engine can serve the next request.
    """

    def __init__(
        self,
        app: Any,
        running: RunningRequests,
        metrics: Metrics,
        api_key: str | None,
        is_engine_usable: Callable[[], bool],
    ) -> None:
        self._app, self._running, self._metrics, self._api_key = app, running, metrics, api_key
        self._is_engine_usable = is_engine_usable

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._is_admitted(scope):
            refusal = Refusal("the API key is missing or wrong", 401, code="invalid_api_key")
            await JSONResponse(refusal.body, refusal.status)(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in ENDPOINTS:
            await self._generate(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_admitted(self, scope: Message) -> bool:
        if self._api_key is None or scope["path"] in _OPEN_TO_ALL:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self._api_key}".encode())

    async def _generate(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        with self._running.one_more(path) as request:
            token, answer = CURRENT.set(request), _Answer(request, send, self._is_engine_usable)
            client = _Client(request, receive, answer)
            try:
                if await client.read_body():
                    await self._app(scope, client.receive, answer.send)
                else:
                    refusal = Refusal(f"the request is larger than {_MOST_BYTES >> 20} MiB", 413)
                    await JSONResponse(refusal.body, refusal.status)(scope, receive, answer.send)
            finally:
                await client.leave()
                await request.until_over()
                CURRENT.reset(token)
                self._metrics.note(request, path, HUNG_UP if client.is_gone else answer.status)


class _Client:
    """The side from which a request comes: its body, and then word that the client hung up."""

    def __init__(self, request: RunningRequest, receive: Receive, answer: "_Answer") -> None:
        self._request, self._receive, self._answer = request, receive, answer
        self._body: bytes | None = b""
        self._gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the client hung up before the answer was complete."""
        return self._gone.is_set()

    async def read_body(self) -> bool:
        """Read the whole body, and begin to watch the connection; False if the body is too large."""
        parts, num_bytes, is_more = [], 0, True
        while is_more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._hang_up()
                return True
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > _MOST_BYTES:
                return False
            is_more = message.get("more_body", False)
        self._body = b"".join(parts)
        self._watch = asyncio.create_task(self._until_gone())
        return True

    async def receive(self) -> Message:
        """What the application reads: the body at once, and later that the client is gone."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def leave(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._hang_up()

    def _hang_up(self) -> None:
        if self._answer.is_complete:  # the same message says so
            return
        self._gone.set()
        self._request.cancel("the client hung up")


class _Answer:
    """The side to which the answer goes."""

    def __init__(self, request: RunningRequest, send: Send, is_engine_usable: Callable[[], bool]) -> None:
        self._request, self._send, self._is_engine_usable = request, send, is_engine_usable
        self.status, self.is_complete = 500, False
        self._is_stream = False

    async def send(self, message: Message) -> None:
        """Pass a message on; in a stream, make its error readable, and end it with the mark that clients expect."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_stream = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
        elif self._is_stream and self._request.endpoint in STREAMS_END_WITH_DONE:
            message = {**message, "body": self._streamed(message.get("body", b""), message.get("more_body", False))}
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    def _streamed(self, body: bytes, is_more: bool) -> bytes:
        failure = self._request.failure
        if failure is not None:
            begin = body.find(_STREAMED_ERROR)
            return body if begin < 0 else body[:begin] + self._error(failure)
        return body if is_more else body + _DONE

    def _error(self, failure: Exception) -> bytes:
        refusal = refusal_of(failure, self._is_engine_usable())
        return b"data: " + json.dumps(refusal.body).encode() + b"\n\n"
