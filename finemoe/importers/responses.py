"""What responses of inference servers have in common: choices, prompt lengths, and layers without routing."""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.gathering import Gathering
from finemoe.importers.opening import json_values
from finemoe.importers.routing import Options, Routing


def responses_in(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every response of a file with its position; a line may also hold a list of them.

    Raises:
        FinemoeError: an item is not a response.
    """
    for place, value in json_values(path):
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                raise FinemoeError(f"{place} is not a JSON object; expected a server's response")
            yield place, item


@dataclass(frozen=True)
class Lengths:
    """Number of tokens of a request's prompt and of its output; None if a response does not state it."""

    prompt: int | None
    generated: int | None

    @classmethod
    def of(cls, response: dict[str, Any], choice: dict[str, Any]) -> "Lengths":
        """From the lists of token ids, or from the response's usage, which counts the tokens of all its choices."""
        holders = (response.get("usage"), choice.get("meta_info"), response.get("meta_info"))
        usage = next((holder for holder in holders if isinstance(holder, dict)), {})
        prompt_ids = choice.get("prompt_token_ids") or response.get("prompt_token_ids")
        is_alone = num_choices(response) <= 1
        generated_ids = choice.get("token_ids") or (response.get("output_ids") if is_alone else None)
        generated = usage.get("completion_tokens") if is_alone else None
        return cls(
            prompt=len(prompt_ids) if isinstance(prompt_ids, list) else _count(usage.get("prompt_tokens")),
            generated=len(generated_ids) if isinstance(generated_ids, list) else _count(generated),
        )

    def prompt_rows(self, rows: int) -> int | None:
        """How many of a response's rows belong to its prompt. Routing exists for all tokens but the last, which is never fed in.

        A server may be configured to omit rows at the start of a prompt, never others.

        Raises:
            FinemoeError: there are too many rows.
        """
        if self.generated is None:
            return None if self.prompt is None else min(self.prompt, rows)
        prompt = rows - max(self.generated - 1, 0)
        if prompt < 0 or (self.prompt is not None and prompt > self.prompt):
            told = f"{self.prompt} prompt and {self.generated} generated tokens"
            raise FinemoeError(f"has routing of {rows} tokens for {told}; expected all but one, or fewer of the prompt")
        return prompt


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def num_choices(response: dict[str, Any]) -> int:
    """Number of choices in a response; 0 if it has no list of choices."""
    choices = response.get("choices")
    return len(choices) if isinstance(choices, list) else 0


def decoded(text: str) -> bytes:
    """Decode base64.

    Raises:
        FinemoeError: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FinemoeError(f"routed_experts is not base64 ({error}); the response was truncated or changed") from error


class Responses:
    """Requests collected from responses, all with the layers in which the first one has routing."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.gathering = Gathering()
        self.routed: np.ndarray | None = None
        self.num_layers = self.num_silent = self.num_cached = 0
        self.model = ""

    def add(self, place: str, ids: np.ndarray, num_prompt: int | None, name: Any) -> None:
        """Add one request's rows. ids: [n, layers, K].

        Raises:
            FinemoeError: they are not the routing of a request; names the position of the response.
        """
        try:
            self.gathering.add(self.routing_layers(ids), num_prompt=num_prompt, name=name)
        except FinemoeError as error:
            raise FinemoeError(f"{place}: {error}") from error

    def routing_layers(self, ids: np.ndarray) -> np.ndarray:
        """Drop layers in which every token has one id K times: servers write zeros for dense layers."""
        if ids.ndim != 3 or ids.shape[2] < 2 or not ids.size:
            return ids
        if self.routed is None or len(self.routed) != ids.shape[1]:
            routed = ~(ids == ids[..., :1]).all(axis=(0, 2))
            self.routed = routed if self.routed is None else self.routed
            if not routed.any():
                raise FinemoeError("lists the same expert K times in every layer; its routing was not recorded")
        return ids if self.routed.all() or len(self.routed) != ids.shape[1] else ids[:, self.routed]

    def routing(self) -> Routing:
        """All requests together.

        Raises:
            FinemoeError: no response had routing.
        """
        notes = []
        if self.routed is not None and not self.routed.all():
            told = ", ".join(map(str, np.flatnonzero(~self.routed).tolist()))
            notes.append(f"layers without routing are left out ({told}); the others keep their order")
        if self.num_silent:
            notes.append(f"{self.num_silent} answers without routing are left out")
        if self.num_cached:
            notes.append(f"{self.num_cached} prompt tokens that came from a cache, and have no routing, are left out")
        return self.gathering.routing(notes=tuple(notes), model=self.model)


def name_of(response: dict[str, Any], choice: dict[str, Any], number: int) -> Any:
    """Name of an answer: the response's id, with the choice's index if there are several."""
    meta = response.get("meta_info")
    name = response.get("id") or response.get("request_id") or (meta.get("id") if isinstance(meta, dict) else None)
    if not isinstance(name, str):
        return number
    return f"{name}/{choice.get('index', 0)}" if num_choices(response) > 1 else name
