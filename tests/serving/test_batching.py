"""`--batched`: many clients at once get what `generate` writes for each alone, and one that leaves takes no other along."""

import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.serving.batching import InBatches
from finemoe.serving.limits import Limits
from finemoe.serving.service import Service
from tests.runtime import families
from tests.serving.served import CHAT, CONTEXT, MOST_NEW, NAME, served, wait_until
from tests.serving.storm import Storm
from tests.serving.test_failures import Fault
from tests.serving.test_hang_ups import Slow
from tests.serving.test_metrics import scraped, settled

SUBJECTS = ("sea", "wheel", "garden", "captain", "attic", "window", "river", "orbit", "whisk", "tower")
ROOM = 512  # tokens; not enough for ten requests of full length


@pytest.fixture(scope="module")
def batched():
    with served(is_batched=True, batch_tokens=ROOM) as live:
        yield live


@pytest.fixture(scope="module")
def expected(live):
    """What a model without batches writes; the same seed made it."""
    return {subject: live.expected_chat(asked(subject), 12) for subject in SUBJECTS}


@pytest.fixture
def slow(batched):
    slow = Slow(batched.model)
    yield slow
    slow.remove()


def asked(subject: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me about the {subject}"}]


def answer_to(live, subject: str, is_stream: bool, num_new: int = 12) -> str:
    with live.client() as client:
        answer = client.chat.completions.create(model=NAME, messages=asked(subject), max_tokens=num_new, stream=is_stream)
        if is_stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        return answer.choices[0].message.content or ""


def batch_of(live):
    """Transformers' scheduler, which knows what is in the batch."""
    return live.service._manager._batch.batch_processor.scheduler


def is_empty(live) -> bool:
    batch = batch_of(live)
    return not batch.has_pending_requests() and batch.cache.compute_free_capacity() == 1


def test_ten_clients_at_once(batched, expected):
    """Whole and streamed; together they demand fewer experts than one after the other."""
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda one: answer_to(batched, one[1], one[0] % 2 == 0), enumerate(SUBJECTS)))
    assert dict(zip(SUBJECTS, answers, strict=True)) == expected
    together = settled(batched).accesses
    alone = [answer_to(batched, subject, False) for subject in SUBJECTS]
    assert alone == answers
    assert together < (settled(batched).accesses - together) / 2
    wait_until(lambda: is_empty(batched))


@pytest.mark.parametrize("path", ["completions", "responses"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_every_endpoint(batched, live, path, is_stream):
    with batched.client() as client:
        if path == "completions":
            wanted = live.expected("The wheel", 9)
            answer = client.completions.create(model=NAME, prompt="The wheel", max_tokens=9, stream=is_stream)
            got = "".join(chunk.choices[0].text for chunk in answer) if is_stream else answer.choices[0].text
        else:
            wanted = live.expected_chat(CHAT, 9)
            answer = client.responses.create(input=CHAT[0]["content"], max_output_tokens=9, stream=is_stream)
            texts = [event.delta for event in answer if event.type == "response.output_text.delta"] if is_stream else []
            got = "".join(texts) or answer.output_text
    assert got == wanted


def test_more_than_there_is_room_for(batched, live):
    """Requests wait, or are taken out and computed anew, and lose nothing."""
    prompts = [" the" * (180 + number) for number in range(6)]
    wanted = [live.expected(prompt, 20) for prompt in prompts]

    def ask(prompt: str) -> str:
        with batched.client() as client:
            return client.completions.create(model=NAME, prompt=prompt, max_tokens=20).choices[0].text

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, prompts)) == wanted
    wait_until(lambda: is_empty(batched))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("stop_at", [1, 6], ids=["in the prompt", "while it writes"])
def test_a_client_that_hangs_up(batched, slow, expected, is_stream, stop_at):
    """The others get their tokens; its blocks are free."""
    slow.stop_at = stop_at
    body = {"messages": asked("sea"), "max_tokens": MOST_NEW, "stream": is_stream}
    connection = batched.send("/v1/chat/completions", body)
    assert slow.is_inside.wait(20)
    assert batched.service.running.counts() == (1, 0)
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(answer_to, batched, subject, is_stream) for subject in SUBJECTS[1:3]]
        wait_until(lambda: batched.service.running.counts() == (1, 2))
        connection.close()
        wait_until(lambda: batched.service.running.counts() == (0, 2))
        slow.go_on.set()
        assert [one.result() for one in others] == [expected[subject] for subject in SUBJECTS[1:3]]
    wait_until(lambda: is_empty(batched))
    assert slow.num_calls <= stop_at + 14  # the two others', not the forty of the first


def test_requests_and_tokens(batched):
    settled(batched)
    before = scraped(batched)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda is_stream: answer_to(batched, "sea", is_stream, 5), [True, False, True, False]))
    settled(batched)
    after = scraped(batched)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["finemoe_requests_total /v1/chat/completions 200"] == 4
    assert grown["finemoe_generated_tokens_total"] == 4 * 5
    assert grown["finemoe_time_to_first_token_seconds_count"] == 4
    assert grown["finemoe_time_per_output_token_seconds_count"] == 4 * 4
    assert (after["finemoe_requests_running"], after["finemoe_requests_waiting"]) == (0, 0)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.7), ("top_p", 0.9), ("seed", 1), ("stop", "a"), ("logit_bias", {"5": 1})]
)
def test_what_is_not_greedy_is_refused(batched, field, value):
    before = batched.engine.report().accesses
    body = {"messages": CHAT, "max_tokens": 2, field: value}
    for is_stream in (False, True):
        answer = batched.http.post("/v1/chat/completions", json={**body, "stream": is_stream})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, field, "unsupported_parameter")
        assert "--batched" in error["message"]
    assert batched.engine.report().accesses == before


def test_what_asks_for_nothing_is_accepted(batched, expected):
    body = {"messages": asked("sea"), "max_tokens": 12, "temperature": 0, "top_p": 0.5, "seed": 1, "logit_bias": {}}
    assert batched.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == expected["sea"]


def test_a_prompt_that_is_too_long(batched):
    before = batched.engine.report().accesses
    with batched.client() as client, pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=NAME, prompt=" the" * CONTEXT)
    assert refused.value.code == "context_length_exceeded"
    assert batched.engine.report().accesses == before


@pytest.mark.parametrize("error", [EngineError('the router returned "NaN"'), IndexError("of a bug")], ids=["engine", "bug"])
def test_a_step_that_fails(batched, expected, error):
    """Its requests fail; the next ones are served."""
    for is_stream in (False, True):
        Fault(batched.model.model.layers[2].mlp, error, 3)
        with pytest.raises(openai.APIError) as failed:
            answer_to(batched, "sea", is_stream)
        assert (failed.value.code, failed.value.body["message"]) == ("generation_failed", f"generation failed: {error}")
    assert answer_to(batched, "sea", False) == expected["sea"]
    assert batched.http.get("/health").json() == {"status": "ok"}


def test_an_engine_that_cannot_go_on(batched, expected):
    worker = batched.engine.memories.memories[0].worker
    worker.failure = RuntimeError("the disk is gone")
    for is_stream in (False, True):
        with pytest.raises(openai.APIError, match="the disk is gone") as failed:
            answer_to(batched, "sea", is_stream)
        assert failed.value.code == "engine_failed"
    assert batched.http.get("/health").status_code == 503
    worker.failure = None
    assert answer_to(batched, "sea", False) == expected["sea"]


def test_a_server_that_stops_gives_its_requests_up():
    with served(is_batched=True, batch_tokens=ROOM) as live:
        slow, codes = Slow(live.model), []

        def ask(is_stream: bool) -> None:
            with pytest.raises(openai.APIError) as failed:
                answer_to(live, "sea", is_stream)
            codes.append(failed.value.code)

        slow.stop_at = 4
        clients = [threading.Thread(target=ask, args=(is_stream,)) for is_stream in (True, False)]
        for client in clients:
            client.start()
        assert slow.is_inside.wait(20)
        wait_until(lambda: len(live.service.running.requests()) == 2)
        live.service.running.cancel_all("the server is stopping")
        for client in clients:
            client.join()
        slow.remove()
    assert codes == ["cancelled"] * 2


def test_a_storm(batched):
    storm = Storm(batched)
    storm.run(60, 10)
    assert storm.wrong == []
    wait_until(lambda: is_empty(batched))


@pytest.mark.parametrize("family", ["deepseek_v3", "jamba"])  # one fails when a request comes, the other before
def test_a_model_that_cannot_is_refused_at_the_start(family):
    model = families.build(family)
    attention = model.config._attn_implementation
    with (
        finemoe.offload(model, 0.5),
        pytest.raises(FinemoeError, match=rf"--batched: {type(model).__name__} cannot .*; leave out --batched"),
    ):
        InBatches(model, Limits(64, 8, 0, 96), 128)
    assert model.config._attn_implementation == attention


def test_mistakes_are_one_line(live):
    def service(**options):
        return Service(live.model, live.engine, live.tokenizer, NAME, is_batched=True, **options)

    with pytest.raises(FinemoeError, match="--batch-tokens 100: fewer than --max-context 200"):
        service(max_context=200, batch_tokens=100)
    with pytest.raises(FinemoeError, match=r"--batched: .*; give fewer --batch-tokens"):
        service(batch_tokens=1 << 40)
    live.model.generation_config.repetition_penalty = 1.2
    try:
        with pytest.raises(FinemoeError, match="asks for RepetitionPenaltyLogitsProcessor"):
            service()
    finally:
        live.model.generation_config.repetition_penalty = None
