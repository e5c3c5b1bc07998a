"""The text of a response, token by token: characters whole, special tokens hidden, and thoughts marked or hidden.

Two kinds of models think in the open. Qwen3 writes its thoughts between <think> and </think>, which are text. gpt-oss names a
channel before every message: thoughts are in "analysis" and the answer is in "final". Both look alike here: <think>, the
thoughts, </think>, a blank line, the answer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

_REPLACEMENT = "\ufffd"  # what an incomplete character decodes to
_ANSWER = "final"


class PlainText:
    """Text of tokens as they come, special tokens hidden.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """Take a token; returns the text that it completes, which is empty within a character of several tokens."""
        self._tokens.append(token)
        text = self._text()
        return "" if text.endswith(_REPLACEMENT) else self._rest_of(text)

    def end(self) -> str:
        """Return the text that is left, however incomplete."""
        return self._rest_of(self._text())

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _rest_of(self, text: str) -> str:
        if not text.startswith(self._shown):  # the decoder wants to change what was shown: wait for more
            return ""
        rest = text[len(self._shown) :]
        self._shown = text
        return rest


class ThinkText:
    """Text of a model that thinks between <think> and </think>, two tokens that are text.

    Args:
        tokenizer: the model's. shows_thoughts: False leaves out the thoughts and the blank lines after them.
        prompt: its tokens; some templates begin the thought at their end.
    """

    def __init__(self, tokenizer: Any, shows_thoughts: bool, prompt: Sequence[int] = ()) -> None:
        self._tokenizer, self._shows_thoughts = tokenizer, shows_thoughts
        self._begin, self._end = (tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "</think>"))
        self._text = PlainText(tokenizer)
        has_begun = self._begins_in(prompt)
        self._opening = "<think>\n" if has_begun else ""
        self._is_thought, self._follows_thought = has_begun and not shows_thoughts, False

    def add(self, token: int) -> str:
        """Take a token; returns the text that it completes."""
        if self._shows_thoughts:
            opening, self._opening = self._opening, ""
            return opening + self._text.add(token)
        if token in (self._begin, self._end):
            rest, self._text = self._text.end(), PlainText(self._tokenizer)
            hidden, self._is_thought = self._is_thought, token == self._begin
            self._follows_thought = token == self._end
            return "" if hidden else rest
        return "" if self._is_thought else self._visible(self._text.add(token))

    def end(self) -> str:
        """Return the text that is left."""
        return "" if self._is_thought else self._visible(self._text.end())

    def _begins_in(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with an open thought."""
        tokens = list(prompt)
        if self._begin not in tokens:
            return False
        after = tokens[len(tokens) - tokens[::-1].index(self._begin) :]
        return not self._tokenizer.decode(after).strip()

    def _visible(self, text: str) -> str:
        text = text.lstrip() if self._follows_thought else text
        self._follows_thought = self._follows_thought and not text
        return text


class ChannelText:
    """Text of a model that names a channel before every message, as gpt-oss does.

    Args:
        tokenizer: the model's. shows_thoughts: False leaves out every channel but "final".
    """

    def __init__(self, tokenizer: Any, shows_thoughts: bool) -> None:
        self._tokenizer, self._shows_thoughts = tokenizer, shows_thoughts
        self._ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("start", "channel", "message", "end")}
        self._channel, self._header, self._is_header = _ANSWER, list[int](), False
        self._text = PlainText(tokenizer)

    def add(self, token: int) -> str:
        """Take a token; returns the text that it completes."""
        if token in (self._ids["start"], self._ids["channel"]):
            closing = "" if self._is_header else self._closed()
            self._header = [] if token == self._ids["channel"] else self._header
            self._is_header = True
            return closing
        if token == self._ids["message"] and self._is_header:
            return self._opened()
        if token == self._ids["end"] and not self._is_header:
            return self._closed()
        if self._is_header:
            self._header.append(token)
            return ""
        text = self._text.add(token)
        return text if self._is_visible else ""

    def end(self) -> str:
        """Return the text that is left, and close a thought."""
        return "" if self._is_header else self._closed()

    @property
    def _is_visible(self) -> bool:
        return self._shows_thoughts or self._channel == _ANSWER

    def _opened(self) -> str:
        """Begin a message of the channel that the header names: its first word."""
        words = PlainText(self._tokenizer)
        name = "".join([*map(words.add, self._header), words.end()]).split()
        self._channel = name[0] if name else _ANSWER
        self._header, self._is_header = [], False
        return "<think>\n" if self._shows_thoughts and self._channel != _ANSWER else ""

    def _closed(self) -> str:
        """End a message."""
        rest, is_visible, channel = self._text.end(), self._is_visible, self._channel
        self._text, self._channel = PlainText(self._tokenizer), _ANSWER
        if not is_visible:
            return ""
        return rest if channel == _ANSWER else f"{rest}\n</think>\n\n"


Response = PlainText | ThinkText | ChannelText


def response_of(tokenizer: Any, shows_thoughts: bool = True, prompt: Sequence[int] = ()) -> Response:
    """How the text of a chat model's answer to a prompt, [n] tokens, is shown, by the markers that its tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    if {"<|channel|>", "<|message|>", "<|start|>", "<|end|>"} <= vocabulary.keys():
        return ChannelText(tokenizer, shows_thoughts)
    if {"<think>", "</think>"} <= vocabulary.keys():
        return ThinkText(tokenizer, shows_thoughts, prompt)
    return PlainText(tokenizer)


def text_of(response: Response, tokens: Iterable[int]) -> str:
    """The whole text of tokens."""
    return "".join([*map(response.add, tokens), response.end()])
