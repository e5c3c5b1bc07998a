"""Chats and drafts as they are measured: every way feeds and generates the same tokens, and counts what it should."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from finemoe.artifact.pipeline import drafts
from finemoe.artifact.pipeline.chats import NUM_TURNS, WAYS, chat_rows, held_chat, messages_on
from finemoe.artifact.pipeline.drafts import served_rows
from finemoe.errors import FinemoeError
from tests.runtime.models import build
from tests.runtime.recordings import Characters

MESSAGES = ["how are you", "and now?", "thanks"]


class Tokenizer(Characters):
    """Characters, one text at a time."""

    def __call__(self, prompts, return_tensors=None, padding=False, **_):
        found = super().__call__([prompts])
        return found if return_tensors else {"input_ids": found["input_ids"][0].tolist()}

    def tokens(self, prompt):
        return self(prompt)["input_ids"]


@pytest.fixture(scope="module")
def chat():
    model = build("mixtral")
    return model, held_chat(model, Tokenizer(), MESSAGES, num_tokens=4)


def test_a_chat_is_held_turn_by_turn(chat):
    _, turns = chat
    assert [turn.message.shape[1] for turn in turns] == [len(text) for text in MESSAGES]
    for before, after in itertools.pairwise(turns):
        assert torch.equal(after.history, torch.cat([before.history, before.message, before.reply], 1))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_going_on_gives_the_same_replies(chat, way):
    model, turns = chat
    rows = chat_rows(model, turns, way, "finemoe-plus", 0.3, asynchronous=False)
    assert [row["turn"] for row in rows] == [1, 2, 3]
    news = [len(text) + (number > 0) for number, text in enumerate(MESSAGES)]  # a reply's last token is not in the cache yet
    wholes = [turn.history.shape[1] + turn.message.shape[1] for turn in turns]
    assert [row["num_fed"] for row in rows] == (wholes if way == "history fed again" else news)
    for row in rows:
        assert row["hits"] + row["late"] + row["misses"] == row["accesses"] > 0
    first = chat_rows(model, turns[:1], "kept", "finemoe-plus", 0.3, asynchronous=False)[0]
    assert {name: rows[0][name] for name in first if not name.endswith("_s")} == {
        name: value for name, value in first.items() if not name.endswith("_s")
    }


def test_another_reply_is_refused(chat):
    model, turns = chat
    wrong = replace(turns[0], reply=turns[0].reply + 1)
    with pytest.raises(FinemoeError, match="turn 1, kept, under on-demand: the reply differs"):
        chat_rows(model, [wrong], "kept", "on-demand", 0.3)


def test_messages_of_a_topic():
    texts = messages_on("cooking", NUM_TURNS)
    assert len(set(texts)) == NUM_TURNS
    assert all(text.strip().startswith("User: ") and text.endswith("\nAssistant:") for text in texts)
    with pytest.raises(FinemoeError, match="served prompts about money; a chat of 10 turns"):
        messages_on("money", NUM_TURNS)


def test_drafts_cost_what_they_say(monkeypatch):
    model = build("mixtral")
    monkeypatch.setattr(drafts, "ASSISTANTS", {"one": "other"})
    models = {"one": (model, Tokenizer()), "other": (copy.deepcopy(model), None)}  # all its drafts are right
    rows = {
        row["way"]: row for row in served_rows(models, "one", ["abcabcabc", "xyxyxy"], 9, "on-demand", 0.3, asynchronous=False)
    }
    assert list(rows) == list(drafts.WAYS)
    plain, assisted = rows["no drafts"], rows["assistant"]
    assert (plain["num_tokens"], plain["num_decode_steps"], plain["tokens_per_step"]) == (16, 16, 1.0)
    assert (plain["rejected_share"], plain["assistant_bytes_per_token"]) == (0, 0)
    assert assisted["num_tokens"] == 16
    assert assisted["num_decode_steps"] < 16
    assert assisted["assistant_bytes_per_token"] > 0
    assert (assisted["accepted"], assisted["rejected_share"]) == (1, 0)
    assert assisted["tokens_per_step"] > 2
