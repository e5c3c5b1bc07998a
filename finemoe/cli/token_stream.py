"""Takes tokens as they are generated: tells their text as it comes, counts them, and shows a bar where text goes to a file."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from finemoe.runtime.response import Response


class TokenStream:
    """A streamer of `generate`.

    Args:
        response: makes text of tokens. has_prompt: whether the prompt is part of the text.
        write: where text goes as it comes; None keeps it for the end.
        max_new_tokens: the most that may come. has_bar: show a bar on standard error.
    Attributes:
        text: all text so far. tokens: the generated tokens.
    """

    def __init__(
        self, response: Response, has_prompt: bool, write: Callable[[str], Any] | None, max_new_tokens: int, has_bar: bool
    ) -> None:
        self.text, self.tokens = "", list[int]()
        self._response, self._has_prompt, self._write = response, has_prompt, write
        self._is_prompt = True
        self._bar = tqdm(desc="generating", total=max_new_tokens, unit="token", leave=False, disable=not has_bar)

    def put(self, value: Any) -> None:
        """Take the prompt, or the next tokens."""
        tokens = value.reshape(-1).tolist()
        if self._is_prompt:
            self._is_prompt = False
            tokens = tokens if self._has_prompt else []
        else:
            self.tokens += tokens
            self._bar.update(len(tokens))
        for token in tokens:
            self._tell(self._response.add(token))

    def end(self) -> None:
        """Print what is left."""
        self.close()
        self._tell(self._response.end())
        if self._write is not None:
            self._write("\n")

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _tell(self, text: str) -> None:
        self.text += text
        if text and self._write is not None:
            self._write(text)


def print_piece(text: str) -> None:
    """Print text at once, so that a reader sees it come."""
    sys.stdout.write(text)
    sys.stdout.flush()
