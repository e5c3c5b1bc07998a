"""What fails while a model generates is one line for the client; the server goes on if the engine does, and says so if not."""

import threading

import openai
import pytest
import torch

from finemoe.errors import EngineError
from finemoe.serving.service import Service
from tests.serving.served import CHAT, NAME, running, served, wait_until


class Fault:
    """Raises an error in the n-th call of a module."""

    def __init__(self, module, error: Exception, at: int) -> None:
        self._error, self._remaining = error, at
        self._hook = module.register_forward_pre_hook(self)

    def __call__(self, *_) -> None:
        self._remaining -= 1
        if self._remaining == 0:
            self._hook.remove()
            raise self._error


def asked(client, is_stream: bool) -> str:
    answer = client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=6, stream=is_stream)
    return "".join(one.choices[0].delta.content or "" for one in answer) if is_stream else answer.choices[0].message.content


@pytest.mark.parametrize("at", [1, 3], ids=["in the prompt", "while it writes"])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EngineError('the router returned "NaN"\nin layer 3'), 'generation failed: the router returned "NaN"'),
        (IndexError("of a bug"), "generation failed: of a bug"),
        (torch.OutOfMemoryError("CUDA out of memory"), "generation failed: CUDA out of memory"),
    ],
    ids=["engine", "bug", "memory"],
)
def test_one_request_fails(live, error, message, is_stream, at):
    """Quotes and line breaks in its message included; nothing but this request is lost."""
    expected = live.expected_chat(CHAT, 6)
    Fault(live.model.model.layers[2].mlp, error, at)
    with live.client() as client:
        if is_stream:  # the status has been sent already
            with pytest.raises(openai.APIError) as streamed:
                asked(client, is_stream)
            assert (streamed.value.message, streamed.value.code) == (message, "generation_failed")
        else:
            with pytest.raises(openai.InternalServerError) as whole:
                asked(client, is_stream)
            assert (whole.value.status_code, whole.value.body["message"]) == (500, message)
        assert asked(client, is_stream) == expected
    assert live.http.get("/health").json() == {"status": "ok"}
    report = live.engine.report()
    assert report.accesses == report.hits + report.late + report.misses


def test_an_error_of_a_response_is_an_event(live):
    Fault(live.model.model.layers[2].mlp, EngineError('a "quoted" word'), at=2)
    with live.client() as client:
        events = list(client.responses.create(model=NAME, input="a", max_output_tokens=4, stream=True))
    assert events[-1].response.error.message == 'a "quoted" word'


def test_an_engine_that_cannot_go_on():
    with served() as live:
        worker = live.engine.memories.memories[0].worker
        worker.failure = RuntimeError("the disk is gone")
        with live.client() as client:
            with pytest.raises(openai.InternalServerError) as whole:
                asked(client, False)
            with pytest.raises(openai.APIError, match="the disk is gone"):
                asked(client, True)
        health = live.http.get("/health")
        metrics = live.http.get("/metrics").text
        worker.failure = None
        assert asked(live.client(), False) == live.expected_chat(CHAT, 6)
    assert (whole.value.status_code, whole.value.code) == (503, "engine_failed")
    assert whole.value.body["message"].endswith("the disk is gone; the engine cannot continue; close it")
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    assert "the disk is gone" in health.json()["reason"]
    assert "finemoe_engine_up 0.0" in metrics
    assert "finemoe_expert_hits_total" not in metrics


def test_a_server_that_stops_gives_its_requests_up(live):
    """The one that runs and the one that waits get an error, not half an answer that looks whole."""
    is_inside, go_on, failures = threading.Event(), threading.Event(), []

    def wait(*_) -> None:
        is_inside.set()
        assert go_on.wait(20)

    def ask(port: int, is_stream: bool) -> None:
        with openai.OpenAI(**live.options(base_url=f"http://localhost:{port}/v1")) as client:
            try:
                asked(client, is_stream)
            except openai.APIError as error:
                failures.append((error.code, error.message))

    with Service(live.model, live.engine, live.tokenizer, NAME) as service, running(service) as port:
        hook = live.model.model.layers[1].register_forward_pre_hook(wait)
        clients = [threading.Thread(target=ask, args=(port, is_stream)) for is_stream in (True, False)]
        for number, client in enumerate(clients):
            client.start()
            assert is_inside.wait(20)
            wait_until(lambda wanted=number + 1: sum(service.running.counts()) == wanted)
        service.running.cancel_all("the server is stopping")
        go_on.set()
        for client in clients:
            client.join()
        hook.remove()
    assert {code for code, _ in failures} == {"cancelled"}
    assert len(failures) == 2
    assert all("the server is stopping" in message for _, message in failures)
