"""A request whose client is gone costs nothing more, wherever it is, and the engine goes on as if it had never come."""

import socket
import threading

import pytest

from tests.serving.served import CHAT, MOST_NEW, NAME, wait_until

PATHS = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": "The wheel"},
    "/v1/responses": {"input": "Why is the sea salty?"},
}


class Slow:
    """Makes every decoder layer wait for as long as it is told, so that hang-ups strike where they are meant to."""

    def __init__(self, model) -> None:
        self.is_inside, self.go_on = threading.Event(), threading.Event()
        self.num_calls, self.stop_at = 0, 0
        self._hook = model.model.layers[1].register_forward_pre_hook(self._wait)

    def _wait(self, *_) -> None:
        self.num_calls += 1
        if self.num_calls == self.stop_at:
            self.is_inside.set()
            assert self.go_on.wait(20)

    def remove(self) -> None:
        self.go_on.set()
        self._hook.remove()


@pytest.fixture
def slow(live):
    slow = Slow(live.model)
    yield slow
    slow.remove()


def is_cancelled(live) -> bool:
    return any(request.is_cancelled for request in live.service.running.requests())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("stop_at", [1, 4], ids=["in the prompt", "while it writes"])
def test_a_client_that_hangs_up(live, slow, path, is_stream, stop_at):
    """Layer 1 is the last that runs: of a prompt, too."""
    slow.stop_at = stop_at
    connection = live.send(path, {**PATHS[path], "stream": is_stream})
    assert slow.is_inside.wait(20)
    assert live.service.running.counts() == (1, 0)
    connection.close()
    wait_until(lambda: is_cancelled(live))
    slow.go_on.set()
    wait_until(lambda: live.service.running.counts() == (0, 0))
    assert slow.num_calls == stop_at
    slow.stop_at = 0
    with live.client() as client:
        answer = client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=6)
    assert answer.choices[0].message.content == live.expected_chat(CHAT, 6)


def test_a_client_that_hangs_up_while_it_waits(live, slow):
    slow.stop_at = 1
    first = live.send("/v1/completions", {**PATHS["/v1/completions"], "max_tokens": 2})
    assert slow.is_inside.wait(20)
    second = live.send("/v1/completions", {**PATHS["/v1/completions"], "max_tokens": MOST_NEW})
    wait_until(lambda: live.service.running.counts() == (1, 1))
    second.close()
    wait_until(lambda: is_cancelled(live))
    slow.go_on.set()
    assert b"200 OK" in first.recv(100)
    first.close()
    wait_until(lambda: live.service.running.counts() == (0, 0))
    assert slow.num_calls == 2  # the first request's


def test_a_client_that_sends_half_a_request(live):
    connection = live.send("/v1/completions", PATHS["/v1/completions"])
    connection.close()
    half = socket.create_connection(("localhost", live.port))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
    half.close()
    wait_until(lambda: not live.service.running.requests())
    assert live.http.get("/health").json() == {"status": "ok"}


def test_what_was_generated_before_is_counted(live, slow):
    slow.stop_at = 4
    before = live.engine.report()
    connection = live.send("/v1/completions", {"prompt": "The wheel"})
    assert slow.is_inside.wait(20)
    connection.close()
    wait_until(lambda: is_cancelled(live))
    slow.go_on.set()
    wait_until(lambda: not live.service.running.requests())
    after = live.engine.report()
    assert (after.num_prefills - before.num_prefills, after.num_decode_steps - before.num_decode_steps) == (1, 2)
    assert after.accesses == after.hits + after.late + after.misses
    assert 'status="499"' in live.http.get("/metrics").text
