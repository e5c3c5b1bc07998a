"""What OpenAI clients get is what the model's own `generate` writes, whole and streamed, at every endpoint."""

import asyncio

import openai
import pytest
import torch

from tests.serving.served import CHAT, CONTEXT, MOST_NEW, NAME, wait_until

TEXTS = ["User: Why is the sea salty?\nAssistant:", "The wheel", "é 猫 🦊 \U0001f469\u200d\U0001f680 end"]
CHATS = [
    CHAT,
    [{"role": "system", "content": "Be brief."}, *CHAT],
    [*CHAT, {"role": "assistant", "content": "Rain washes rocks."}, {"role": "user", "content": "And lakes?"}],
]


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.parametrize("messages", CHATS, ids=["one", "with a system message", "several turns"])
def test_a_chat(live, messages):
    asked = {"model": NAME, "messages": messages, "max_tokens": 9}
    expected = live.expected_chat(messages, 9)
    with live.client() as client:
        answer = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert answer.choices[0].message.content == expected
    assert (answer.model, answer.choices[0].finish_reason, answer.usage.completion_tokens) == (NAME, "length", 9)
    assert text_of(chunks) == expected
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "length")
    assert chunks[-1].usage == answer.usage


@pytest.mark.parametrize("text", TEXTS)
def test_a_text(live, text):
    asked = {"model": NAME, "prompt": text, "max_tokens": 9}
    expected = live.expected(text, 9)
    with live.client() as client:
        answer = client.completions.create(**asked)
        streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert (answer.choices[0].text, streamed) == (expected, expected)
    assert answer.usage.prompt_tokens == len(live.tokenizer(text).input_ids)


def test_a_response(live):
    asked = {"model": NAME, "input": "Why is the sea salty?", "instructions": "Be brief.", "max_output_tokens": 9}
    expected = live.expected_chat(CHATS[1], 9)
    with live.client() as client:
        assert client.responses.create(**asked).output_text == expected
        events = list(client.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens == 9


def test_parts_of_text_are_joined(live):
    parts = [{"type": "text", "text": "Why is"}, {"type": "text", "text": "the sea salty?"}]
    with live.client() as client:
        answer = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": parts}], max_tokens=5)
    assert answer.choices[0].message.content == live.expected_chat(CHAT, 5)


def test_an_asynchronous_client(live):
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(**live.options()) as client:
            asked = {"model": NAME, "messages": CHAT, "max_tokens": 7}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**asked), client.chat.completions.create(**asked, stream=True)
            )
            return whole.choices[0].message.content, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    expected = live.expected_chat(CHAT, 7)
    assert asyncio.run(ask()) == (expected, expected)


def test_a_seed_decides_what_is_drawn(live):
    """A request's seed counts for it alone, whatever is drawn before it; top_p and temperature are generate's."""
    asked = {"model": NAME, "prompt": TEXTS[0], "max_tokens": 8, "temperature": 1.3, "top_p": 0.9}
    with live.client() as client:
        drawn = [client.completions.create(**asked, seed=seed).choices[0].text for seed in (5, 6, 5)]
        client.completions.create(**asked)
        streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, seed=5, stream=True))
    torch.manual_seed(5)
    expected = live.expected(TEXTS[0], 8, do_sample=True, temperature=1.3, top_p=0.9)
    assert drawn[0] == drawn[2] == streamed == expected
    assert drawn[1] != expected


def test_no_temperature_is_greedy(live):
    with live.client() as client:
        answer = client.completions.create(model=NAME, prompt=TEXTS[0], max_tokens=8, temperature=0, seed=1)
    assert answer.choices[0].text == live.expected(TEXTS[0], 8)


def test_biased_tokens(live):
    token = live.tokenizer.encode(" wheel", add_special_tokens=False)[0]
    with live.client() as client:
        answer = client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=3, logit_bias={str(token): 100})
    assert answer.choices[0].message.content == live.tokenizer.decode([token] * 3)


def test_without_a_length_the_answer_takes_the_room_that_is_left(live):
    """It is the server's most, or what the context has left."""
    prompt = " the" * 236
    with live.client() as client:
        long = client.completions.create(model=NAME, prompt=prompt)
        short = client.completions.create(model=NAME, prompt=" the")
    assert long.usage.prompt_tokens > CONTEXT - MOST_NEW
    assert long.usage.total_tokens == CONTEXT
    assert short.usage.completion_tokens == MOST_NEW


def test_the_model_is_listed_under_its_name(live):
    with live.client() as client:
        assert [model.id for model in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).id == NAME
        assert client.models.retrieve("tiny").id == NAME  # an alias
        assert client.completions.create(model="tiny", prompt="a", max_tokens=1).model == NAME
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("another")
    assert live.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).json()["model"] == NAME


def test_raw_responses_and_timeouts(live):
    asked = {"model": NAME, "messages": CHAT}
    with live.client() as client:
        raw = client.chat.completions.with_raw_response.create(**asked, max_tokens=2)
        assert raw.headers["x-request-id"]
        assert raw.parse().usage.completion_tokens == 2
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.01).chat.completions.create(**asked, max_tokens=40)
    wait_until(lambda: not live.service.running.requests())


def test_fields_without_effect_are_accepted(live):
    extra = {"user": "u", "metadata": {"a": "b"}, "store": False, "n": 1, "presence_penalty": 0, "stream_options": None}
    with live.client() as client:
        answer = client.chat.completions.create(
            model=NAME, messages=CHAT, max_tokens=4, response_format={"type": "text"}, **extra
        )
    assert answer.choices[0].message.content == live.expected_chat(CHAT, 4)


def test_a_stream_ends_as_openai_ends_it(live):
    asked = {"messages": CHAT, "max_tokens": 2, "stream": True}
    with live.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
