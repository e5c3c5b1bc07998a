"""Responses of SGLang with `--enable-return-routed-experts`, as JSON lines, one document, or a list of them.

Ids are base64 of flat numbers, int32 unless `routed_experts_dtype` is uint8 or uint16, for [tokens, layers, K]: the whole request
except its last token, from `routed_experts_start_len` on. `/generate` returns them in `meta_info.routed_experts`, the
OpenAI-compatible endpoints in `choices[].sgl_ext.routed_experts`, some versions next to the choices. Layers are all decoder
layers; dense ones hold zeros. The payload contains neither the number of layers nor K. Slots of fused shared experts are removed;
before pull request 9499 they held 255. Sources in sgl-project/sglang: state_capturer/base.py and routed_experts.py (024911f),
routed_experts_wire.py (a6463a1), managers/io_struct.py, and the class SglExt of the endpoints' protocol.
"""

from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.opening import Head
from finemoe.importers.responses import Lengths, Responses, decoded, name_of, responses_in
from finemoe.importers.routing import Options, Routing

NAME = "sglang"
_IDS, _DTYPE = "routed_experts", "routed_experts_dtype"
_DTYPES = {"int32": "<i4", "uint16": "<u2", "uint8": "<u1"}
_PLACES = ("meta_info", "sgl_ext", "sglext")
_FILLER = 255


def matches(head: Head) -> bool:
    """Whether the first response has routing in SGLang's form."""
    value = head.first_value
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and any(payload is not None for _, payload, _ in _payloads(first))


def _payloads(response: dict[str, Any]) -> list[tuple[dict[str, Any], str | None, str]]:
    """Each answer of a response, its payload (None without one), and the payload's type."""
    choices = response.get("choices")
    answers = choices if isinstance(choices, list) and choices else [response]
    found = []
    for answer in (answer for answer in answers if isinstance(answer, dict)):
        holders = [answer, *(answer.get(place) for place in _PLACES)]
        holders += [response.get(place) for place in _PLACES] if len(answers) == 1 else []
        holder = next((one for one in holders if isinstance(one, dict) and isinstance(one.get(_IDS), str)), {})
        found.append((answer, holder.get(_IDS), str(holder.get(_DTYPE) or "int32")))
    return found


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file, one request per answer.

    Raises:
        FinemoeError: layers or K are unknown, or a response is malformed; names the line, or the item of a list.
    """
    found = Responses(options)
    for number, (place, response) in enumerate(responses_in(path)):
        found.model = found.model or str(response.get("model") or "")
        for answer, payload, dtype in _payloads(response):
            if payload is None:
                found.num_silent += 1
                continue
            lengths = Lengths.of(response, answer)
            try:
                ids = _shaped(_flat(payload, dtype), lengths, _start(response, answer), options)
                num_prompt = lengths.prompt_rows(len(ids))
            except FinemoeError as error:
                raise FinemoeError(f"{place}: {error}") from error
            found.add(place, ids, num_prompt, name_of(response, answer, number))
    return found.routing()


def _start(response: dict[str, Any], answer: dict[str, Any]) -> int:
    holders = [holder.get(place) for holder in (answer, response) for place in _PLACES]
    stated = (holder.get("routed_experts_start_len") for holder in (answer, response, *holders) if isinstance(holder, dict))
    return next((start for start in stated if isinstance(start, int)), 0)


def _flat(payload: str, dtype: str) -> np.ndarray:
    if dtype not in _DTYPES:
        raise FinemoeError(f"{_DTYPE} is {dtype!r}; known are {', '.join(_DTYPES)}")
    content = decoded(payload)
    if len(content) % np.dtype(_DTYPES[dtype]).itemsize:
        raise FinemoeError(f"{_IDS} has {len(content)} bytes, not a whole number of {dtype} values; the response was truncated")
    return np.frombuffer(content, _DTYPES[dtype])


def _shaped(flat: np.ndarray, lengths: Lengths, start: int, options: Options) -> np.ndarray:
    """Reshape to [tokens, layers, K] ids.

    Raises:
        FinemoeError: the numbers do not make whole tokens, or K is unknown.
    """
    top_k, layers = options.size("top_k"), options.num_layers
    if top_k is None or (layers is None and not options.of_model):
        how = "give them with --layers and --top-k, or name a model's configuration with --model"
        raise FinemoeError(f"SGLang's payload is flat and does not state layers and K; {how}")
    layers = layers if layers is not None else _layers(flat, lengths, start, top_k, options)
    if not flat.size or flat.size % (layers * top_k):
        raise FinemoeError(f"{_IDS} has {flat.size} numbers, which is not a multiple of {layers} layers x {top_k} experts")
    ids = flat.reshape(-1, layers, top_k)
    if top_k > 1 and ((ids == _FILLER).sum(axis=-1) > 1).any():
        raise FinemoeError(f"expert {_FILLER} fills slots of fused shared experts; record with --disable-shared-experts-fusion")
    return ids


def _layers(flat: np.ndarray, lengths: Lengths, start: int, top_k: int, options: Options) -> int:
    """All decoder layers, as SGLang records them, or only MoE layers, whichever gives the right number of tokens."""
    every, routing = options.of_model["decoder_layers"], options.of_model["num_layers"]
    if lengths.prompt is not None and lengths.generated is not None:
        rows = lengths.prompt + lengths.generated - 1 - start
        return routing if flat.size == rows * routing * top_k else every
    return every
