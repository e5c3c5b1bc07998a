"""An answer ends before its stop sequence, whole and streamed, however the sequence falls into tokens."""

import asyncio
import itertools
import random

import pytest

from finemoe.serving.stops import StopCut, WithoutStops, before_stop
from tests.serving.served import CHAT, NAME

TEXT = "User: Why is the sea salty?\nAssistant:"


def test_pieces_give_what_the_whole_gives():
    """Every cut of texts over two letters, against a search of the whole; nothing is passed on too early."""
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("ab", k=draw.randrange(12)))
        stops = ["".join(draw.choices("ab", k=draw.randrange(1, 5))) for _ in range(draw.randrange(1, 4))]
        ends = sorted({*draw.sample(range(len(text) + 1), len(text) // 2), len(text)})
        end = next((end for end in ends if any(stop in text[:end] for stop in stops)), len(text))  # where `generate` ends
        text, ends = text[:end], [one for one in ends if one <= end]
        whole = min((text[: text.index(stop)] for stop in stops if stop in text), key=len, default=text)
        cut, passed = StopCut(stops), ""
        for begin, end in itertools.pairwise([0, *ends]):
            passed += cut.passed(text[begin:end])
            assert whole.startswith(passed)
        assert passed + cut.rest() == whole == before_stop(text, stops)


class Thought(str):
    pass


def test_what_waits_comes_before_what_is_no_text():
    queue: asyncio.Queue = asyncio.Queue()
    for item in ("one t", Thought("two"), "tw", "o", " more", None):
        queue.put_nowait(item)
    without = WithoutStops(queue, ["two"])
    items = [without.get_nowait() for _ in range(4)]
    assert items == ["one ", "t", Thought("two"), None]
    with pytest.raises(asyncio.QueueEmpty):
        without.get_nowait()


@pytest.mark.parametrize("num_characters", [2, 9], ids=["in a token", "over several tokens"])
def test_an_answer_ends_before_its_stop_sequence(live, num_characters):
    """All tokens are counted, those of the sequence too."""
    whole = live.expected(TEXT, 12)
    stop = whole[len(whole) // 3 :][:num_characters]
    asked = {"model": NAME, "prompt": TEXT, "max_tokens": 12, "stop": [stop, "never written"]}
    ended = live.expected(TEXT, 12, stop_strings=[stop])
    with live.client() as client:
        answer = client.completions.create(**asked)
        chunks = list(client.completions.create(**asked, stream=True))
    assert stop in ended
    assert answer.choices[0].text == ended[: ended.index(stop)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert answer.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
    assert answer.usage == chunks[-1].usage


def test_a_chat_that_stops(live):
    whole = live.expected_chat(CHAT, 12)
    stop = whole[len(whole) // 2 :][:4]
    asked = {"model": NAME, "messages": CHAT, "max_tokens": 12, "stop": stop}
    with live.client() as client:
        answer = client.chat.completions.create(**asked).choices[0].message.content
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert answer == whole[: whole.index(stop)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
