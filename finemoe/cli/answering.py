"""Generates an answer: streamed, stopped by Ctrl-C at the next token, with the text that a reader should see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finemoe.cli.messages import Interrupted
from finemoe.cli.stopping import StopAsked
from finemoe.cli.token_stream import TokenStream
from finemoe.errors import FinemoeError
from finemoe.runtime.decoding import Decoding
from finemoe.runtime.generation import sequences_of, tokenizer_option
from finemoe.runtime.prompts import Encoding, as_batch
from finemoe.runtime.response import PlainText, response_of, text_of

END, LIMIT, INTERRUPTED = "end of text", "max_new_tokens", "interrupted"


@dataclass(frozen=True)
class Answer:
    """What was generated.

    Attributes:
        text: as a reader sees it. tokens: [n] the prompt and the answer. num_new: how many of them were generated.
        ended: END, LIMIT or INTERRUPTED. is_shown: whether the text was printed as it came.
    """

    text: str
    tokens: np.ndarray
    num_new: int
    ended: str
    is_shown: bool


@dataclass(frozen=True)
class Speaker:
    """Generates answers of one model.

    Args:
        model, tokenizer: of the checkpoint. decoding: how tokens are chosen. max_new_tokens: of each answer.
        is_chat: whether prompts went through the chat template; a plain text is shown with its prompt.
        shows_thoughts: see `response_of`. write: where text goes as it comes; None keeps it. has_bar: show a bar.
    """

    model: Any
    tokenizer: Any
    decoding: Decoding
    max_new_tokens: int
    is_chat: bool
    shows_thoughts: bool
    write: Callable[[str], Any] | None
    has_bar: bool

    def answer(self, encoding: Encoding, cache: Any = None) -> Answer:
        """Generate for one prompt.

        Args:
            encoding: of the prompt. cache: keys and values of its beginning, if any; it is extended.
        Raises:
            FinemoeError: the prompt fills the model's context.
            Interrupted: Ctrl-C was pressed twice.
        """
        self._require_room(len(encoding["input_ids"]))
        stop, is_streamed = StopAsked(), (self.model.generation_config.num_beams or 1) == 1  # beams are known at the end only
        write = self.write if is_streamed else None
        stream = TokenStream(self._response(encoding), not self.is_chat, write, self.max_new_tokens, self.has_bar and is_streamed)
        try:
            with stop.listening():
                output = self._generate(encoding, stop, stream if is_streamed else None, cache)
        except KeyboardInterrupt:
            done = f"after {len(stream.tokens)} of at most {self.max_new_tokens} tokens" if is_streamed else "while generating"
            raise Interrupted(f"{done}; no file was written") from None
        finally:
            stream.close()
        tokens = sequences_of(output)[0].cpu().numpy()
        num_new = len(tokens) - len(encoding["input_ids"])
        ended = INTERRUPTED if stop.is_asked else LIMIT if num_new >= self.max_new_tokens else END
        text = (
            stream.text if is_streamed else text_of(self._response(encoding), tokens[-num_new if self.is_chat else 0 :].tolist())
        )
        return Answer(text, tokens, num_new, ended, write is not None)

    def _response(self, encoding: Encoding) -> Any:
        if not self.is_chat:
            return PlainText(self.tokenizer)
        return response_of(self.tokenizer, self.shows_thoughts, encoding["input_ids"].tolist())

    def _generate(self, encoding: Encoding, stop: StopAsked, stream: TokenStream | None, cache: Any) -> Any:
        pad_token_id = self.tokenizer.pad_token_id
        if self.decoding.is_sampled:
            torch.manual_seed(self.decoding.seed)
        return self.model.generate(
            **as_batch(self.model, [encoding], pad_token_id).inputs,
            max_new_tokens=self.max_new_tokens,
            streamer=stream,
            stopping_criteria=[stop],
            pad_token_id=pad_token_id,
            **({} if cache is None else {"past_key_values": cache}),
            **self.decoding.options(),
            **tokenizer_option(self.model, self.tokenizer, {}),
        )

    def _require_room(self, num_tokens: int) -> None:
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(most, int) and num_tokens >= most:
            raise FinemoeError(f"the prompt has {num_tokens:,} tokens, but this model has positions for {most:,}; shorten it")
