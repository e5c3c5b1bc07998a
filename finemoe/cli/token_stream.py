"""Prints tokens as they are generated, with a progress bar where the text goes to a file."""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TextStreamer


class TokenStream(TextStreamer):
    """Prints text as it comes, and counts tokens.

    Args:
        max_new_tokens: the most that may come. has_bar: show a bar on standard error.
    """

    def __init__(self, tokenizer: Any, max_new_tokens: int, has_bar: bool) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.num_tokens = -1  # the prompt is the first thing that comes
        self._bar = tqdm(desc="generating", total=max_new_tokens, unit="token", leave=False, disable=not has_bar)

    def put(self, value: Any) -> None:
        """Take the prompt, or the next token."""
        super().put(value)
        self.num_tokens += 1
        if self.num_tokens > 0:
            self._bar.update()

    def end(self) -> None:
        """Print what is left."""
        self.close()
        super().end()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def stream_of(tokenizer: Any, max_new_tokens: int, is_streamed: bool, is_shown: bool) -> TokenStream:
    """The stream for a run: text on a terminal shows progress by itself, any other output has a bar."""
    return TokenStream(tokenizer, max_new_tokens, is_shown and is_streamed and not sys.stdout.isatty())
