"""Text of a response, token by token: characters whole, special tokens hidden, thoughts marked or hidden."""

import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoConfig

from finemoe.cli.answering import END, Answer
from finemoe.cli.turns import Turns
from finemoe.runtime.loading import load_tokenizer
from finemoe.runtime.response import PlainText, response_of, text_of


def tokens_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", ["qwen15", "olmoe", "deepseek"])
def test_any_tokens_come_out_as_they_decode(family, folders):
    """Random ids: halves of characters, special tokens and ids without a token among them."""
    tokenizer, rng = load_tokenizer(str(folders[family])), random.Random(0)
    for _ in range(50):
        tokens = [rng.randrange(512) for _ in range(rng.randrange(40))]
        response = response_of(tokenizer)
        pieces = [response.add(token) for token in tokens]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) + response.end() == whole


def test_no_character_is_shown_in_halves(folders):
    tokenizer = load_tokenizer(str(folders["qwen15"]))
    text = "déjà 海 👍🏽 – 🌊 done"
    response = PlainText(tokenizer)
    pieces = [response.add(token) for token in tokens_of(tokenizer, text)]
    assert "".join(pieces) == text
    assert response.end() == ""
    assert "" in pieces  # within a character
    assert pieces[0]  # and text does not wait for the end


def test_thoughts_between_marks_are_shown_or_hidden(folders):
    tokenizer = load_tokenizer(str(folders["qwen3"]))
    tokens = tokens_of(tokenizer, "<think>\nThe sea is old.\n</think>\n\nBecause of the rivers.<|im_end|>")
    assert text_of(response_of(tokenizer), tokens) == "<think>\nThe sea is old.\n</think>\n\nBecause of the rivers."
    assert text_of(response_of(tokenizer, shows_thoughts=False), tokens) == "Because of the rivers."
    unfinished = tokens_of(tokenizer, "<think>\nThe sea is")
    assert text_of(response_of(tokenizer, shows_thoughts=False), unfinished) == ""
    plain = tokens_of(tokenizer, "No thought.")
    assert text_of(response_of(tokenizer, shows_thoughts=False), plain) == "No thought."


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        (
            "<|channel|>analysis<|message|>The sea is old.<|end|><|start|>assistant<|channel|>final<|message|>Rivers.<|return|>",
            "<think>\nThe sea is old.\n</think>\n\nRivers.",
            "Rivers.",
        ),
        ("<|channel|>final<|message|>Rivers.<|return|>", "Rivers.", "Rivers."),
        ("<|channel|>analysis<|message|>The sea", "<think>\nThe sea\n</think>\n\n", ""),
        ("<|channel|>analysis<|message|>Old.<|end|><|start|>assist", "<think>\nOld.\n</think>\n\n", ""),
        (
            "<|channel|>commentary to=functions.tide <|constrain|>json<|message|>{}<|call|>",
            "<think>\n{}\n</think>\n\n",
            "",
        ),
        ("No channel at all.", "No channel at all.", "No channel at all."),
        ("", "", ""),
    ],
)
def test_channels_are_thoughts_and_an_answer(text, shown, hidden, folders):
    tokenizer = load_tokenizer(str(folders["gpt_oss"]))
    tokens = tokens_of(tokenizer, text)
    assert text_of(response_of(tokenizer), tokens) == shown
    assert text_of(response_of(tokenizer, shows_thoughts=False), tokens) == hidden


def test_a_chat_goes_on_from_answers_without_their_thoughts(folders, monkeypatch):
    """What gpt-oss thought is no part of its earlier messages, as its channels' names are no part of their text."""
    tokenizer = load_tokenizer(str(folders["gpt_oss"]))
    said = "<|channel|>analysis<|message|>Old sea.<|end|><|start|>assistant<|channel|>final<|message|>Rivers.<|return|>"
    prompts = []

    class Speaker:
        model = SimpleNamespace(config=AutoConfig.from_pretrained(folders["gpt_oss"]))

        def answer(self, encoding, cache):
            prompts.append(tokenizer.decode(encoding["input_ids"]))
            tokens = np.concatenate([encoding["input_ids"], tokens_of(tokenizer, said)])
            return Answer("", tokens, 9, END, True)

    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\nAnd then?\n"))
    Turns(tokenizer, None, None, raw=False, template={}).answered(Speaker())
    earlier = "<|start|>user<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>Rivers.<|end|>"
    assert prompts[1].endswith(f"{earlier}<|start|>user<|message|>And then?<|end|><|start|>assistant")
    assert "Old sea" not in prompts[1]


@pytest.mark.parametrize(
    ("prompt", "shown", "hidden"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\nOld.\n</think>\n\nRivers.", "Rivers."),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "Old.\n</think>\n\nRivers.", "Old.\nRivers."),
        ("<think> means what?<|im_end|>\n<|im_start|>assistant\n", "Old.\n</think>\n\nRivers.", "Old.\nRivers."),
    ],
)
def test_a_thought_that_the_template_begins_is_a_thought(prompt, shown, hidden, folders):
    """As the templates of models that always think do."""
    tokenizer = load_tokenizer(str(folders["qwen3"]))
    tokens, before = tokens_of(tokenizer, "Old.\n</think>\n\nRivers.<|im_end|>"), tokens_of(tokenizer, prompt)
    assert text_of(response_of(tokenizer, prompt=before), tokens) == shown
    assert text_of(response_of(tokenizer, shows_thoughts=False, prompt=before), tokens) == hidden
