"""Converts users' prompts into the token ids that a model's `generate` takes."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from finemoe.errors import FinemoeError, first_line
from finemoe.runtime.observer import embedding_of

Prompt = str | list[Any]  # a text, or a conversation: one mapping with role and content per message
Encoding = dict[str, np.ndarray]  # input_ids and a tokenizer's other outputs, each [n]
_NO_OPTIONS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class PromptBatch:
    """A batch of prompts, padded on the left.

    Attributes:
        inputs: arguments of `generate`, including `input_ids`, each [B, W].
        tokens: the token ids on the host, [B, W].
        pads: number of padding columns before each prompt.
    """

    inputs: dict[str, torch.Tensor]
    tokens: np.ndarray
    pads: list[int]

    @property
    def width(self) -> int:
        return int(self.tokens.shape[1])


def as_prompts(prompts: Iterable[Any]) -> list[Prompt]:
    """Convert any iterable of texts or conversations to a list: a list, generator, array, Series or column of a dataset.

    Raises:
        FinemoeError: it is a single text, a table or a mapping, is empty, or holds anything but texts and conversations; the
            message names the prompt.
    """
    if isinstance(prompts, str):
        raise FinemoeError("record takes a list of prompts, not one text; write [prompt]")
    num_dimensions = getattr(prompts, "ndim", 1)
    if isinstance(prompts, Mapping | set | frozenset | bytes) or not isinstance(prompts, Iterable) or num_dimensions != 1:
        shape = f" of {num_dimensions} dimensions" if num_dimensions != 1 else ""
        raise FinemoeError(f"record takes a list of prompts, not {_a(prompts)}{shape}; give the texts, such as one column")
    found = [_as_prompt(number, prompt) for number, prompt in enumerate(prompts)]
    if not found:
        raise FinemoeError("record needs at least one prompt, and none of them empty")
    return found


def _as_prompt(number: int, prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        if not prompt:
            raise FinemoeError(f"record needs at least one prompt, and none of them empty; prompt {number} is empty")
        _check_text(prompt, number)
        return str.__str__(prompt)  # the plain text, even of a string enumeration that prints differently
    if isinstance(prompt, Mapping):
        raise FinemoeError(f"prompt {number} is {_a(prompt)}; give its text, or [messages] for one conversation")
    if isinstance(prompt, Sequence | np.ndarray) and len(prompt) and all(_is_message(one) for one in prompt):
        return list(prompt)
    raise FinemoeError(f"prompt {number} is {_a(prompt)}; a prompt is a text or a list of chat messages (role and content)")


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and "role" in message and "content" in message


def _a(value: Any) -> str:
    """A short description of a value: its repr if that is short, else its type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text and not isinstance(value, list | dict) else type(value).__name__


def encode(
    tokenizer: Any, prompts: Sequence[Prompt], first: int, template_options: Mapping[str, Any] = _NO_OPTIONS
) -> list[Encoding]:
    """Tokenise the prompts of a batch, without padding; the tokenizer's chat template is applied to conversations.

    Args:
        first: number of the first prompt, for error messages. template_options: further arguments of the chat template.
    Raises:
        FinemoeError: a text is not UTF-8, a chat template is missing, the template or the tokenizer refuses a prompt, or the
            result is not one row of tokens per prompt; the message names the prompt.
    """
    for number, prompt in enumerate(prompts, first):
        if isinstance(prompt, str):
            _check_text(prompt, number)
    if len(prompts) > 1 and all(isinstance(prompt, str) for prompt in prompts):
        try:
            given = tokenizer(list(prompts), return_tensors="pt", padding=True)
        except Exception:  # the prompts it refuses are named below, one by one
            given = None
        tables = _tables(given, len(prompts)) if isinstance(given, Mapping) else {}
        if {"input_ids", "attention_mask"} <= set(tables):  # the mask marks padding
            rows = [{name: table[row] for name, table in tables.items()} for row in range(len(prompts))]
            return [_encoding(row, prompt, number) for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True), first)]
    return [_encode_alone(tokenizer, prompt, number, template_options) for number, prompt in enumerate(prompts, first)]


def _check_text(prompt: str, number: int) -> None:
    """Non-UTF-8 bytes arrive from a command line as lone surrogates, which tokenizers refuse or drop."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        wrong = f"{prompt[error.start]!r} at character {error.start}"
        raise FinemoeError(f"prompt {number} holds {wrong}, which is not valid UTF-8; remove or replace it") from error


def _tables(given: Mapping[str, Any], num_rows: int) -> dict[str, np.ndarray]:
    """Those outputs of a tokenizer that have one row per prompt, all of one length."""
    tables = {}
    for name, value in given.items():
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths: the tokenizer did not pad them
            continue
        if array.ndim == 2 and len(array) == num_rows:
            tables[name] = array
    return tables


def _encode_alone(tokenizer: Any, prompt: Prompt, number: int, template_options: Mapping[str, Any]) -> Encoding:
    if isinstance(prompt, str):
        try:
            given = tokenizer([prompt], return_tensors="pt", padding=False)
        except Exception as error:  # a lone surrogate, or not a tokenizer of texts
            raise FinemoeError(f"prompt {number}: the tokenizer refuses it ({first_line(error)}): {prompt!r:.60}") from error
        return _encoding(given, prompt, number)
    return _encoding(_through_template(tokenizer, prompt, number, template_options), prompt, number)


def _encoding(given: Any, prompt: Prompt, number: int) -> Encoding:
    if not isinstance(given, Mapping) or "input_ids" not in given:
        raise FinemoeError(f"this tokenizer returns {_a(given)} without input_ids; record needs a tokenizer that returns them")
    ids = _ids(given["input_ids"])
    if ids is None or (ids.size and ids.shape[-1] != ids.size):
        raise FinemoeError(f"prompt {number}: the tokenizer returns several rows of tokens for one text: {prompt!r:.60}")
    rows = {name: np.asarray(value).reshape(-1) for name, value in given.items()}
    if ids.dtype.kind == "u":
        rows["input_ids"] = rows["input_ids"].astype(np.int64)  # PyTorch cannot compare unsigned integers
    encoding = {name: row for name, row in rows.items() if len(row) == len(rows["input_ids"])}
    is_token = encoding.get("attention_mask", np.ones_like(encoding["input_ids"])).astype(bool)
    if not is_token.any():
        raise FinemoeError(f"prompt {number} has no tokens: {prompt!r:.60}")
    if np.ptp(np.flatnonzero(is_token)) >= is_token.sum():
        raise FinemoeError(
            f"prompt {number}: the tokenizer masks tokens inside it, which record does not support: {prompt!r:.60}"
        )
    return {name: value[is_token] for name, value in encoding.items() if name != "attention_mask"}


def _ids(given: Any) -> np.ndarray | None:
    """Token ids as an array; None if they are lists of different lengths."""
    try:
        return np.asarray(given)
    except ValueError:
        return None


def _through_template(tokenizer: Any, messages: list[Any], number: int, options: Mapping[str, Any]) -> Any:
    if getattr(tokenizer, "chat_template", None) is None:
        raise FinemoeError(f"prompt {number} is a list of chat messages, but this tokenizer has no chat template; give a text")
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            **options,
        )
    except Exception as error:  # a template is a program and may raise anything
        raise FinemoeError(f"prompt {number}: the chat template refuses it ({first_line(error)})") from error


def as_batch(model: nn.Module, encodings: Sequence[Encoding], pad_token_id: int | None) -> PromptBatch:
    """Arrange encoded prompts as the model's inputs: token ids, their mask, and other encodings that its forward accepts.

    Args:
        pad_token_id: fills the columns before a shorter prompt; the mask hides it.
    Raises:
        FinemoeError: the model has no embedding for a token, or prompts differ in length and its forward accepts no mask.
    """
    accepted = _accepted(model)
    width = max(len(encoding["input_ids"]) for encoding in encodings)
    pads = [width - len(encoding["input_ids"]) for encoding in encodings]
    shared = set.intersection(*(set(encoding) for encoding in encodings))
    names = ["input_ids", *sorted((shared & accepted) - {"input_ids"})]
    fill = {"input_ids": pad_token_id or 0}
    arrays = {name: _padded([encoding[name] for encoding in encodings], pads, fill.get(name, 0)) for name in names}
    _require_embedded(model, encodings, fill["input_ids"])
    if any(pads) and "attention_mask" not in accepted:
        raise FinemoeError(
            f"{type(model).__name__}.forward takes no attention_mask that would hide padding; use batch_size=1, or prompts of "
            "one length"
        )
    if "attention_mask" in accepted:
        arrays["attention_mask"] = _padded([np.ones(width - pad, dtype=np.int64) for pad in pads], pads, 0)
    device = next(model.parameters()).device
    return PromptBatch({name: torch.as_tensor(array).to(device) for name, array in arrays.items()}, arrays["input_ids"], pads)


def _accepted(model: nn.Module) -> set[str]:
    """Parameter names of the model's forward, including its class's, since another library may have wrapped the instance's."""
    return set(inspect.signature(type(model).forward).parameters) | set(inspect.signature(model.forward).parameters)


def _require_embedded(model: nn.Module, encodings: Sequence[Encoding], pad: int) -> None:
    """Refuse token ids beyond the embeddings, for example after a pad token was added; a GPU would not survive them.

    The pad token is checked too: it is fed to rows that end before others.
    """
    count = getattr(embedding_of(model), "num_embeddings", None)
    if count is None:
        return
    tokens = np.concatenate([encoding["input_ids"] for encoding in encodings])
    outside = tokens[(tokens < 0) | (tokens >= count)]
    has = f"the model has embeddings for 0..{count - 1} only"
    if len(outside):
        raise FinemoeError(f"the tokenizer returns token {outside[0]}, but {has}; use the model's own tokenizer")
    if len(encodings) > 1 and not 0 <= pad < count:
        raise FinemoeError(
            f"the tokenizer's pad token is {pad}, but {has}; set another (tokenizer.pad_token = tokenizer.eos_token)"
        )


def _padded(rows: Sequence[np.ndarray], pads: Sequence[int], fill: int) -> np.ndarray:
    return np.stack([np.pad(row, (pad, 0), constant_values=fill) for row, pad in zip(rows, pads, strict=True)])
