"""Follows a model's `generate`: which tokens every forward feeds after which others, and where every sequence ends.

In every generation mode, `generate` passes each row's whole history to `prepare_inputs_for_generation` before it runs the model.
Other forwards (the unconditional half of guidance, the model's own drafts) do not pass through there.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import StoppingCriteriaList

from finemoe.errors import FinemoeError
from finemoe.interrupts import while_attached
from finemoe.runtime.generation import refusals_in_one_line, sequences_of
from finemoe.runtime.prefixes import Prefixes
from finemoe.runtime.prompts import PromptBatch
from finemoe.runtime.tape import Fed


@dataclass(frozen=True)
class FedSequence:
    """One returned sequence without padding.

    Attributes:
        prompt: index of the batch's prompt that it continues.
        tokens: [n + m - 1] tokens of its prompt and generated tokens except the last.
        rows: [n + m - 1] recorded row of each token.
        forwards: [n + m - 1] forward that fed each row, never descending.
        num_prompt: n.
    """

    prompt: int
    tokens: np.ndarray
    rows: np.ndarray
    forwards: np.ndarray
    num_prompt: int


class Follower:
    """Follows one `generate` of a batch of prompts.

    Args:
        model: the model that generates.
        batch: its prompts.
    """

    def __init__(self, model: nn.Module, batch: PromptBatch) -> None:
        self._model, self._batch = model, batch
        self._prefixes = Prefixes()
        self._history: np.ndarray | None = None  # [rows, columns] of the last prepared forward
        self._num_fed = 0  # tokens per row that the prepared forward feeds; 0 if none is prepared
        self._num_forwards = 0
        self._ends: dict[int, int] = {}  # length of each row when it met a stopping criterion
        self.is_nested = False  # True while the model generates its own draft
        self._replaced: dict[str, Any] = {}  # instance attributes that replaced the model's methods before
        self._thread = threading.get_ident()

    def generate(self, **options: Any) -> Any:
        """Run the model's `generate` on the prompts and return its result.

        Raises:
            FinemoeError: it refuses the options, or generates in a way that cannot be followed.
        """
        generate: Callable[..., Any] = self._model.generate  # type: ignore[assignment]
        with refusals_in_one_line(self._model, lambda: self._num_forwards > 0), torch.inference_mode():
            return while_attached(self, lambda: generate(**self._batch.inputs, **options))

    def attach(self) -> None:
        """Intercept the methods that `generate` calls on the model, on this instance and in this thread only."""
        replaced = {
            "prepare_inputs_for_generation": self._noting_inputs,
            "_get_stopping_criteria": self._noting_ends,
            "generate": self._nested,
        }
        own = self._model.__dict__
        self._replaced = {name: own.get(name) for name in replaced}
        for name, wrap in replaced.items():
            own[name] = self._in_this_thread(getattr(self._model, name), wrap)

    def detach(self) -> None:
        """Restore the model's own methods."""
        replaced, self._replaced = self._replaced, {}
        for name, before in replaced.items():
            self._model.__dict__.pop(name, None)
            if before is not None:
                self._model.__dict__[name] = before

    def next_forward(self) -> Fed | None:
        """What the starting forward feeds, or None if it is not a step of the generation itself.

        Raises:
            FinemoeError: the model runs before `generate` has prepared its inputs.
        """
        if self._num_fed == 0 or self.is_nested:
            self.require_begun()
            return None
        history, num_fed, self._num_fed = self._history, self._num_fed, 0
        assert history is not None
        new: list[int] = []
        for slot, tokens in enumerate(history):
            prompt = self._prompt_of(slot, len(history))
            tokens = tokens[self._batch.pads[prompt] :]
            begin = (slot + 1) * num_fed - len(tokens)
            found = self._prefixes.feed(prompt, slot, tokens, num_fed, self._num_forwards)
            new += [begin + position for position in found]
        self._num_forwards += 1
        return Fed(history[:, history.shape[1] - num_fed :].reshape(-1), np.array(new, dtype=np.int64))

    def require_begun(self) -> None:
        """Refuse a model that runs before any step was prepared.

        Raises:
            FinemoeError: its `generate` deviates from the usual steps.
        """
        if self._num_forwards == 0 and not self.is_nested:
            raise FinemoeError(
                f"record cannot follow how {type(self._model).__name__} generates; its steps are not the usual ones"
            )

    def sequences(self, output: Any) -> list[FedSequence]:
        """The returned sequences, with the recorded row of each of their tokens.

        Args:
            output: the result of `generate`.
        Raises:
            FinemoeError: a token was never fed after the tokens before it.
        """
        tokens = sequences_of(output).cpu().numpy()
        lengths = self._lengths(output, tokens)
        return [self._sequence(number, row[: lengths[number]], len(tokens)) for number, row in enumerate(tokens)]

    def _lengths(self, output: Any, tokens: np.ndarray) -> Sequence[int]:
        beams = getattr(output, "beam_indices", None)
        if beams is not None:
            return [self._batch.width + int(count) for count in (beams >= 0).sum(dim=1)]
        return [self._ends.get(row, int(tokens.shape[1])) for row in range(len(tokens))]

    def _sequence(self, number: int, row: np.ndarray, num_sequences: int) -> FedSequence:
        prompt = self._prompt_of(number, num_sequences)
        tokens = row[self._batch.pads[prompt] : -1]
        rows = self._prefixes.find(prompt, number, tokens)
        if len(rows) < len(tokens):
            raise FinemoeError(
                f"token {len(rows)} of a sequence was never fed after the tokens before it, so its routing is unknown; generate "
                "changed the sequence afterwards, which record cannot follow"
            )
        forwards = np.array([self._prefixes.forwards[one] for one in rows])
        return FedSequence(prompt, tokens, np.array(rows), forwards, self._batch.width - self._batch.pads[prompt])

    def _prompt_of(self, row: int, num_rows: int) -> int:
        """The prompt of a row; `generate` repeats every prompt in place, for beams and returned sequences."""
        return row // (num_rows // len(self._batch.pads))

    def _in_this_thread(self, original: Callable[..., Any], wrap: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of one of the model's methods; calls from other threads are not followed."""
        wrapped = wrap(original)

        @functools.wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            return (wrapped if threading.get_ident() == self._thread else original)(*args, **kwargs)

        return called

    def _nested(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def nested(*args: Any, **kwargs: Any) -> Any:
            outer, self.is_nested = self.is_nested, True
            try:
                return generate(*args, **kwargs)
            finally:
                self.is_nested = outer

        return nested

    def _noting_ends(self, get_criteria: Callable[..., Any]) -> Callable[..., Any]:
        def get(*args: Any, **kwargs: Any) -> Any:
            criteria = get_criteria(*args, **kwargs)
            return criteria if self.is_nested else _Noted(criteria, self._note_ends)

        return get

    def _note_ends(self, length: int, is_done: torch.Tensor) -> None:
        for row in is_done.nonzero().flatten().tolist():
            self._ends.setdefault(row, length)

    def _noting_inputs(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            inputs = prepare(*args, **kwargs)
            if not self.is_nested:
                self._note_inputs(kwargs["input_ids"] if "input_ids" in kwargs else args[0], inputs)
            return inputs

        return noting

    def _note_inputs(self, given: torch.Tensor, inputs: dict[str, Any]) -> None:
        history = given.cpu().numpy()
        if self._history is not None and self._history.shape[1] < self._batch.width:  # only the next piece of a prompt is given
            history = np.concatenate([self._history, history], axis=1)
        fed = inputs.get("input_ids")
        self._require_prompts(history)
        if fed is None or not np.array_equal(fed.cpu().numpy(), history[:, history.shape[1] - fed.shape[1] :]):
            raise FinemoeError(
                f"{type(self._model).__name__} is fed tokens that are not those of its sequences; record cannot follow this"
            )
        _require_cache(inputs.get("past_key_values"), history.shape[1] - fed.shape[1])
        self._history, self._num_fed = history, fed.shape[1]

    def _require_prompts(self, history: np.ndarray) -> None:
        prompts = self._batch.tokens
        copies = len(history) // len(prompts)
        if not np.array_equal(history[:, : prompts.shape[1]], np.repeat(prompts, copies, axis=0)[:, : history.shape[1]]):
            raise FinemoeError(
                "generate changes the prompts' tokens before it begins, which record cannot follow; turn off token_healing"
            )


def _require_cache(cache: Any, num_before: int) -> None:
    num_cached = int(cache.get_seq_length()) if cache is not None else 0
    if num_cached != num_before:
        raise FinemoeError(
            f"the model's cache holds {num_cached} tokens, but {num_before} came before; record cannot follow this"
        )


class _Noted(StoppingCriteriaList):
    """A generation's stopping criteria, which also report to `note` which rows are done."""

    def __init__(self, criteria: Any, note: Callable[[int, torch.Tensor], None]) -> None:
        super().__init__(criteria)
        self._note = note

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        is_done: torch.Tensor = super().__call__(input_ids, scores, **kwargs)
        self._note(input_ids.shape[1], is_done)
        return is_done
