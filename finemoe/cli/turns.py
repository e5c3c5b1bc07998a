"""The turns of `finemoe run`: one prompt, or a chat over standard input that keeps its keys and values."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import typer

from finemoe.cli.answering import INTERRUPTED, Answer, Speaker
from finemoe.cli.prompt_text import is_chat, messages_of, reading_input
from finemoe.cli.token_stream import print_piece
from finemoe.errors import FinemoeError
from finemoe.runtime.decoding import Decoding
from finemoe.runtime.kept_cache import KeptCache
from finemoe.runtime.plain_template import plain_template_note, with_template
from finemoe.runtime.prompts import encode
from finemoe.runtime.response import response_of, text_of

_OF_TEXT, _OF_CHAT = 64, 512  # tokens to generate at most


class Turns:
    """What the user asks.

    Args:
        tokenizer: the model's; for a chat it gets a plain template if it has none.
        asked: the prompt, or None for a chat over standard input.
        system: the system message. raw: leave the chat template out. template: arguments of the template.
    Attributes:
        is_chat: whether prompts go through the chat template. failure: what ended a chat after its first answer.
    Raises:
        FinemoeError: a chat is to leave its template out, or the template or the tokenizer refuses the prompt.
    """

    def __init__(self, tokenizer: Any, asked: str | None, system: str | None, raw: bool, template: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.failure: FinemoeError | None = None
        if asked is None and raw:
            raise FinemoeError("--chat talks through a chat template, which --raw leaves out; give one of the two")
        if asked is None and not with_template(tokenizer):
            typer.echo(plain_template_note("this model"), err=True)
        self.is_chat = is_chat(tokenizer, raw, system)
        self._asked, self._template = asked, template
        self._messages = [] if system is None or asked is not None else messages_of("", system)[:1]
        self._first = None if asked is None else self._encoded(messages_of(asked, system) if self.is_chat else asked)

    def answered(self, speaker: Speaker) -> list[Answer]:
        """Answer the prompt, or every line of standard input."""
        if self._first is not None:
            return [speaker.answer(self._first)]
        answers: list[Answer] = []
        try:
            for answer in self._talk(speaker):
                answers.append(answer)
        except FinemoeError as error:
            if not answers:
                raise
            self.failure = error  # what was answered keeps its counters
        return answers

    def _talk(self, speaker: Speaker) -> Iterator[Answer]:
        cache = KeptCache(speaker.model)
        for line in _lines():
            self._messages.append({"role": "user", "content": line})
            encoding = self._encoded(self._messages)
            answer = speaker.answer(encoding, cache.for_prompt(encoding["input_ids"]))
            cache.hold(answer.tokens)
            prompt, new = np.split(answer.tokens, [len(encoding["input_ids"])])
            response = response_of(self.tokenizer, shows_thoughts=False, prompt=prompt.tolist())  # templates forget thoughts, too
            content = text_of(response, new.tolist())
            self._messages.append({"role": "assistant", "content": content})
            yield answer
            if answer.ended == INTERRUPTED and not sys.stdin.isatty():  # a person goes on with the next line
                return

    def _encoded(self, prompt: Any) -> Any:
        return encode(self.tokenizer, [prompt], 0, self._template)[0]


def _lines() -> Iterator[str]:
    """Lines that are not empty, with a prompt where a person types them."""
    is_typed = sys.stdin.isatty()
    while True:
        if is_typed:
            typer.echo("> ", nl=False, err=True)
        try:
            with reading_input():
                line = sys.stdin.readline()
        except KeyboardInterrupt:  # the chat ends as at its end, with its counters
            line = ""
        if not line:
            if is_typed:
                typer.echo(err=True)  # below the prompt
            return
        if line.strip():
            yield line.rstrip("\n")


def decoding_of(sample: bool | None, temperature: float | None, top_p: float | None, seed: int) -> Decoding:
    """How tokens are chosen: greedily, unless sampling or one of its settings is asked for; temperature 0 is greedy."""
    if temperature == 0 and not sample and top_p is None:
        return Decoding(False)
    is_sampled = sample if sample is not None else (temperature, top_p) != (None, None)
    return Decoding(is_sampled, temperature, top_p, seed)


def speaker_of(
    model: Any, turns: Turns, decoding: Decoding, max_new_tokens: int | None, thoughts: bool, as_json: bool, is_shown: bool
) -> Speaker:
    """The speaker for these turns; text on a terminal shows progress by itself, any other output has a bar."""
    most = max_new_tokens or (_OF_CHAT if turns.is_chat else _OF_TEXT)
    write = None if as_json else print_piece
    has_bar = is_shown and not sys.stdout.isatty()
    return Speaker(model, turns.tokenizer, decoding, most, turns.is_chat, thoughts, write, has_bar)
