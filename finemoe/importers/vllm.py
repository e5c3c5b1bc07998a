"""Responses of vLLM with `--enable-return-routed-experts`, as JSON lines, one document, or a list of them.

Since v0.22, a choice's `routed_experts` is base64 of an .npy [tokens - 1, layers, K] for the prompt and the generated tokens
except the last. v0.21 has lists: the response's `prompt_routed_experts` [prompt, layers, K] with -1 for tokens from a prefix
cache, and the choice's `routed_experts` [generated or fewer, layers, K]. The prompt's length follows from token ids or `usage`.
The endpoints `/v1/completions`, `/v1/chat/completions` and `/inference/v1/generate` return this form. Dense layers hold zeros.
Sources in vLLM: docs/training/routed_experts_replay.md (v0.21), fused_moe/routed_experts_capturer.py (00bd149), and
vllm-project/router#184.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.array_files import MAGIC, array_in
from finemoe.importers.opening import Head
from finemoe.importers.responses import Lengths, Responses, decoded, name_of, responses_in
from finemoe.importers.routing import Options, Routing

NAME = "vllm"
_NPY_AS_BASE64 = "k05VTVBZ"  # the first bytes of every .npy
_IDS, _PROMPT_IDS = "routed_experts", "prompt_routed_experts"


def matches(head: Head) -> bool:
    """Whether the first response has routing in vLLM's form."""
    value = head.first_value
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict) or not isinstance(first.get("choices"), list):
        return False
    choices = [choice for choice in first["choices"] if isinstance(choice, dict)]
    return _PROMPT_IDS in first or any(_is_vllms(choice.get(_IDS)) for choice in choices)


def _is_vllms(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.startswith(_NPY_AS_BASE64))


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file, one request per answer.

    Raises:
        FinemoeError: a response is malformed; names the line, or the item of a list.
    """
    found = Responses(options)
    for number, (place, response) in enumerate(responses_in(path)):
        choices = response.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise FinemoeError(f"{place} has no list of choices; expected a response of vLLM, such as /v1/completions returns")
        found.model = found.model or str(response.get("model") or "")
        for choice in choices:
            _add(found, place, response, choice, number)
    return found.routing()


def _add(found: Responses, place: str, response: dict[str, Any], choice: dict[str, Any], number: int) -> None:
    value, prompt = choice.get(_IDS), response.get(_PROMPT_IDS)
    try:
        if isinstance(value, str):
            ids = _array(decoded(value))
            num_prompt = Lengths.of(response, choice).prompt_rows(len(ids))
        else:
            parts = [_listed(name, part) for name, part in ((_PROMPT_IDS, prompt or []), (_IDS, value or []))]
            was_cached = (parts[0] == -1).all(axis=(1, 2))
            found.num_cached += int(was_cached.sum())
            parts[0] = parts[0][~was_cached]
            ids, num_prompt = np.concatenate([part for part in parts if len(part)] or parts[:1]), len(parts[0])
    except (FinemoeError, ValueError) as error:
        raise FinemoeError(f"{place}: {error}") from error
    if not len(ids):
        found.num_silent += 1
        return
    found.add(place, ids, num_prompt, name_of(response, choice, number))


def _array(content: bytes) -> np.ndarray:
    if not content.startswith(MAGIC):
        raise FinemoeError("routed_experts is not a base64-encoded .npy, which vLLM writes since v0.22")
    return array_in(io.BytesIO(content), _IDS)


def _listed(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value) if value else np.zeros((0, 1, 1), np.int64)
    except ValueError:
        raise FinemoeError(f"{name} holds lists of different lengths; expected [tokens, layers, K]") from None
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise FinemoeError(f"{name} is of shape {list(array.shape)} and type {array.dtype}; expected ids [tokens, layers, K]")
    return array
