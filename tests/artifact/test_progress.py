"""Progress bars: for people in a terminal or a notebook, silent in the pipeline, and no change to what is iterated."""

import sys
from types import SimpleNamespace

import pytest

from finemoe.artifact.pipeline.serving import serve
from finemoe.artifact.progress import Steps, progress, steps
from finemoe.paths import HEADLESS


@pytest.mark.parametrize("reader", ["a terminal", "the pipeline", "a file"])
def test_only_people_see_a_bar(reader, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv(HEADLESS, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: reader == "a terminal", raising=False)
    if reader == "the pipeline":
        monkeypatch.setenv(HEADLESS, "1")
        monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    assert list(progress([1, 2, 3], "counting", "number")) == [1, 2, 3]
    with steps("walking", 2, "step") as bar:
        bar.advance("left")
        bar.advance("right")
    seen = capsys.readouterr()
    assert seen.out == ""
    assert {word in seen.err for word in ("counting", "walking", "right")} == {reader == "a terminal"}


def test_a_notebook_in_a_browser_has_one(monkeypatch, capsys):
    monkeypatch.delenv(HEADLESS, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert list(progress(iter("ab"), "reading", total=2)) == ["a", "b"]
    assert "reading" in "".join(capsys.readouterr())


def test_tokens_count_and_prompts_do_not():
    """As `generate` calls a streamer: with the prompt, then with every token, request by request."""
    updates = []
    counted = Steps(SimpleNamespace(update=lambda: updates.append(1)))
    for num_tokens in (3, 2):
        counted.put("the prompt")
        for _ in range(num_tokens):
            counted.put("a token")
        counted.end()
    assert len(updates) == 5


@pytest.mark.parametrize("title", ["", "serving"])
def test_a_title_makes_generate_count_its_tokens(title):
    streamers = []

    class Model:
        device = "cpu"

        def generate(self, streamer=None, **_):
            streamers.append(streamer)
            return [SimpleNamespace(tolist=lambda: [1, 2, 3])]

    class Inputs(dict):
        def to(self, _):
            return self

    def tokenizer(*_, **__):
        return Inputs(input_ids=0, attention_mask=0)

    tokenizer.pad_token_id = 0
    served = serve(Model(), tokenizer, ["a", "b"], 3, title=title)
    assert [one.tokens for one in served] == [(1, 2, 3)] * 2
    assert all(isinstance(one, Steps) for one in streamers) == bool(title)
