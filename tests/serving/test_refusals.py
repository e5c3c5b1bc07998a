"""What the server does not do, it refuses before anything runs, with an error that OpenAI clients understand."""

import json

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from finemoe.errors import FinemoeError
from finemoe.serving.fields import NEUTRAL
from finemoe.serving.service import Service
from tests.serving.served import CHAT, CONTEXT, MOST_NEW, NAME, running

PART = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]
OTHER_THAN_NEUTRAL = {
    **{
        "audio": {"voice": "alloy", "format": "wav"},
        "best_of": 2,
        "echo": True,
        "frequency_penalty": 1,
        "function_call": {"name": "f"},
    },
    **{
        "functions": [{"name": "f"}],
        "generation_config": "{}",
        "logprobs": True,
        "modalities": ["audio"],
        "n": 2,
        "prediction": {},
    },
    **{"presence_penalty": 0.5, "response_format": {"type": "json_object"}, "suffix": "x", "text": {"format": {"type": "json"}}},
    **{"tool_choice": "required", "top_logprobs": 1, "truncation": "auto", "web_search_options": {}, "background": True},
    **{"conversation": "c", "include": ["a"], "previous_response_id": "r"},
}
WRONG = [  # field, value, and what of the message names the problem
    ("messages", [], "at least 1 item"),
    ("messages", "hello", "valid list"),
    ("messages", [{"content": "hello"}], "role is missing"),
    ("messages", [{"role": "user", "content": [PART]}], "'text'"),
    ("messages", [{"role": "user", "content": 5}], "content"),
    ("messages", [{"role": "assistant", "tool_calls": CALL}], "no prompt can be made"),
    ("temperature", 3, "less than or equal to 2"),
    ("temperature", "hot", "valid number"),
    ("top_p", 0, "greater than 0"),
    ("max_tokens", 0, "greater than or equal to 1"),
    ("max_tokens", "5", "valid integer"),
    ("max_tokens", MOST_NEW + 1, f"at most {MOST_NEW} tokens"),
    ("seed", -1, "greater than or equal to 0"),
    ("stop", ["a"] * 5, "at most 4 items"),
    ("stop", "", "at least 1 character"),
    ("stream", "yes", "valid boolean"),
    ("logit_bias", {"sea": 1}, "valid integer"),
    ("logit_bias", {"100000": 1}, "no token 100000"),
    ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}, "not a variable"),
    ("nonsense", 1, "not a field"),
]


def accesses(live) -> int:
    return live.engine.report().accesses


@pytest.mark.parametrize(("field", "value", "problem"), WRONG)
def test_wrong_fields(live, field, value, problem):
    before = accesses(live)
    body = {"model": NAME, "messages": CHAT, "max_tokens": 2, field: value}
    answer = live.http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert problem in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert accesses(live) == before


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_unsupported_fields(live, path, is_stream):
    content = {"chat/completions": {"messages": CHAT}, "completions": {"prompt": "a"}, "responses": {"input": "a"}}[path]
    assert set(OTHER_THAN_NEUTRAL) == set(NEUTRAL)
    for name, value in OTHER_THAN_NEUTRAL.items():
        answer = live.http.post(f"/v1/{path}", json={**content, name: value, "stream": is_stream})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_errors_are_those_of_the_client_library(live):
    with live.client() as client:
        with pytest.raises(openai.NotFoundError) as found:
            client.chat.completions.create(model="gpt-2", messages=CHAT)
        with pytest.raises(openai.BadRequestError) as asked:
            client.chat.completions.create(model=NAME, messages=CHAT, n=2)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=NAME, input="a")
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    assert (asked.value.code, asked.value.param, asked.value.type) == ("unsupported_parameter", "n", "invalid_request_error")
    assert asked.value.body["message"] == "n is not supported: this server gives one answer to a request"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_prompt_that_is_too_long(live, is_stream):
    before = accesses(live)
    with live.client() as client:
        asked = {"model": NAME, "stream": is_stream}
        with pytest.raises(openai.BadRequestError, match=f"context is {CONTEXT}, answer included") as alone:
            client.completions.create(prompt=" the" * CONTEXT, **asked)
        with pytest.raises(openai.BadRequestError, match="ask for at most") as together:
            client.completions.create(prompt=" the" * (CONTEXT - 10), max_tokens=20, **asked)
        with pytest.raises(openai.BadRequestError, match="shorten the prompt") as chat:
            client.chat.completions.create(messages=[{"role": "user", "content": " the" * CONTEXT}], **asked)
    assert (alone.value.code, alone.value.param) == ("context_length_exceeded", "prompt")
    assert (together.value.code, together.value.param) == ("context_length_exceeded", "max_tokens")
    assert chat.value.param == "messages"
    assert accesses(live) == before


@pytest.mark.parametrize("content", [b"{", b"[1]", b"", b'{"messages": \xff}'])
def test_what_is_no_json_object(live, content):
    answer = live.http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"][:25]) == (400, "the body must be a JSON o")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_what_a_page_of_another_site_may_send(live, content_type):
    """A browser sends these without asking first."""
    body = json.dumps({"messages": CHAT})
    answer = live.http.post("/v1/chat/completions", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400


def test_a_body_that_is_too_large(live):
    answer = live.http.post("/v1/completions", json={"prompt": "a" * (33 << 20)})
    assert (answer.status_code, answer.json()["error"]["message"]) == (413, "the request is larger than 32 MiB")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(
            ("POST", path, 404)
            for path in ("/load_model", "/reset", "/v1/systemone", "/v1/audio/transcriptions", "/v1/embeddings")
        ),
        *(("GET", path, 404) for path in ("/", "/docs", "/redoc", "/openapi.json")),
        ("GET", "/v1/chat/completions", 405),
    ],
)
def test_routes_that_load_or_unload_are_closed(live, method, path, status):
    answer = live.http.request(method, path, json={"model": "other/model"} if method == "POST" else None)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(f"{method} {path}: ")


def test_a_key(live):
    with Service(live.model, live.engine, live.tokenizer, NAME, api_key="s3cret") as service, running(service) as port:
        url = f"http://localhost:{port}"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.completions.create(model=NAME, prompt="a")
            assert client.with_options(api_key="s3cret").completions.create(model=NAME, prompt="a", max_tokens=1).usage
        assert refused.value.code == "invalid_api_key"
        assert [httpx.get(url + path).status_code for path in ("/health", "/metrics", "/v1/models")] == [200, 401, 401]
        text = httpx.get(f"{url}/metrics", headers={"authorization": "Bearer s3cret"}).text
        assert "finemoe_engine_up" in {family.name for family in text_string_to_metric_families(text)}


def test_a_context_that_the_model_lacks(live):
    with pytest.raises(FinemoeError, match=f"made for {CONTEXT} tokens"):
        Service(live.model, live.engine, live.tokenizer, NAME, max_context=CONTEXT + 1)
