"""Routing in NumPy files: an .npz with arrays under common names, or arrays [tokens, layers, K] alone, one per request.

From an .npz are read: the experts [T, L, K] and, if present, weights of the same shape; `offsets` [R + 1] or a request name for
each row [T]; `is_prompt` or `phase` [T], or `prompt_tokens` [R]; `step` [T]; `num_experts`. An .npy, and an .npz in which no
array has such a name, hold one array of ids per request. This is how users save vLLM's `CompletionOutput.routed_experts`, which
v0.21 splits into `prompt_routed_experts` and `routed_experts` (see `vllm`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.array_files import MAGIC, StoredArray, stored_arrays
from finemoe.importers.columns import SYNONYMS, prompts_of, requests_of
from finemoe.importers.gathering import Gathering
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options, Routing

NAME = "npz"
_IDS = (*SYNONYMS["expert"].split(), "ids", "indices")
_WEIGHTS = SYNONYMS["weight"].split()
_OFFSETS = ("offsets", "request_offsets", "row_offsets", "cu_seqlens")
_REQUESTS = (*SYNONYMS["request"].split(), "requests", "request_ids")
_PHASES = SYNONYMS["phase"].split()
_PROMPT_LENGTHS = ("prompt_tokens", "num_prompt_tokens", "prompt_len", "prompt_lens", "prompt_lengths")
_PROMPT_IDS = "prompt_routed_experts"
_Arrays = Mapping[str, StoredArray]


def matches(head: Head) -> bool:
    """Whether the file is one array, or an archive of arrays."""
    return head.start.startswith(MAGIC) or any(name.endswith(".npy") for name in head.members)


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file.

    Raises:
        FinemoeError: its arrays do not fit together; tokens and layers are counted from 0.
    """
    arrays = stored_arrays(path)
    ids = _one(arrays, _IDS)
    if ids is None:
        return _of_requests(arrays)
    if _PROMPT_IDS in arrays:
        return _of_prompt_and_rest(arrays[_PROMPT_IDS], ids)
    return _of_names(arrays, ids)


def _one(arrays: _Arrays, names: tuple[str, ...] | list[str]) -> StoredArray | None:
    """The array that has one of these names; None if there is none."""
    found = [array for name, array in arrays.items() if name.lower() in names]
    if len(found) > 1:
        raise FinemoeError(f"arrays {found[0].name!r} and {found[1].name!r} hold the same; leave one out")
    return found[0] if found else None


def _of_names(arrays: _Arrays, ids: StoredArray) -> Routing:
    _require_ids(ids)
    weights = _one(arrays, _WEIGHTS)
    if weights is not None and weights.shape != ids.shape:
        raise FinemoeError(f"{weights.name} {list(weights.shape)} and {ids.name} {list(ids.shape)} differ in shape")
    order, offsets, names = _requests(arrays, ids.shape[0])
    number, step = _one(arrays, ["num_experts"]), _row_array(arrays, SYNONYMS["step"].split(), ids.shape[0])
    found = {"expert_ids": ids.compact(np.uint16), "weights": None if weights is None else weights.compact(np.float32)}
    found |= {"is_prompt": _prompts(arrays, offsets), "iteration": step}
    if order is not None:
        found = {name: None if array is None else array[order] for name, array in found.items()}
    num_experts = None if number is None else int(number.read())
    return Routing(offsets=offsets, num_experts=num_experts, request_ids=names, **found)  # type: ignore[arg-type]


def _require_ids(ids: StoredArray) -> None:
    if len(ids.shape) != 3 or ids.dtype.kind not in "iu":
        what = f"array {ids.name!r}" if ids.name else "the array"
        raise FinemoeError(
            f"{what} is of shape {list(ids.shape)} and type {ids.dtype}; expected whole numbers [tokens, layers, K]"
        )


def _row_array(arrays: _Arrays, names: list[str], num_rows: int) -> np.ndarray | None:
    stored = _one(arrays, names)
    if stored is not None and stored.shape != (num_rows,):
        raise FinemoeError(
            f"array {stored.name!r} is of shape {list(stored.shape)}; expected one value for each of {num_rows} tokens"
        )
    return None if stored is None else stored.read()


def _requests(arrays: _Arrays, num_rows: int) -> tuple[np.ndarray | None, np.ndarray, tuple[object, ...]]:
    """The order of rows (None to keep it), the first rows of requests, and their names."""
    offsets = _one(arrays, _OFFSETS)
    named = _one(arrays, _REQUESTS)
    if offsets is not None:
        names = () if named is None or named.shape == (num_rows,) else tuple(requests_of(named.read()).tolist())
        return None, offsets.read(), names
    requests = _row_array(arrays, list(_REQUESTS), num_rows)
    if requests is None:
        return None, np.array([0, num_rows]), ()
    values, firsts, places = np.unique(requests_of(requests), return_index=True, return_inverse=True)
    order = np.argsort(places, kind="stable")
    is_sorted = bool((order[1:] > order[:-1]).all())
    offsets_found = np.append(0, np.cumsum(np.bincount(places, minlength=len(firsts))))
    return None if is_sorted else order, offsets_found, tuple(values.tolist())


def _prompts(arrays: _Arrays, offsets: np.ndarray) -> np.ndarray | None:
    num_rows = int(offsets[-1]) if len(offsets) else 0
    stored = _one(arrays, _PHASES)
    if stored is not None:
        phase = _row_array(arrays, _PHASES, num_rows)
        return None if phase is None else prompts_of(stored.name, phase, 0)
    lengths = _one(arrays, _PROMPT_LENGTHS)
    if lengths is None:
        return None
    counts = np.atleast_1d(lengths.read())
    if counts.shape != (len(offsets) - 1,):
        raise FinemoeError(f"array {lengths.name!r} has {counts.size} values for {len(offsets) - 1} requests")
    lengths_of_requests = np.diff(offsets)
    return np.asarray(np.arange(num_rows) - np.repeat(offsets[:-1], lengths_of_requests) < np.repeat(counts, lengths_of_requests))


def _of_prompt_and_rest(prompt: StoredArray, rest: StoredArray) -> Routing:
    for array in (prompt, rest):
        _require_ids(array)
    if prompt.shape[1:] != rest.shape[1:]:
        raise FinemoeError(f"{prompt.name} {list(prompt.shape)} and {rest.name} {list(rest.shape)} differ in layers or experts")
    ids = np.concatenate([prompt.compact(np.uint16), rest.compact(np.uint16)])
    gathering = Gathering()
    gathering.add(ids, num_prompt=prompt.shape[0])
    return gathering.routing()


def _of_requests(arrays: _Arrays) -> Routing:
    """One array of ids per request, in the order of the numbers in their names."""
    odd = next((array for array in arrays.values() if len(array.shape) != 3 or array.dtype.kind not in "iu"), None)
    if odd is not None and odd.name:
        told = ", ".join(arrays)
        raise FinemoeError(
            f"no array has a name such as expert_ids, and {odd.name!r} is not [tokens, layers, K]; the arrays are: {told}"
        )
    gathering = Gathering()
    for name in sorted(arrays, key=_numbers_in):
        _require_ids(arrays[name])
        try:
            gathering.add(arrays[name].compact(np.uint16))
        except FinemoeError as error:
            raise FinemoeError(f"array {name!r} {error}" if name else str(error)) from error
    return gathering.routing()


def _numbers_in(name: str) -> list[tuple[int, str]]:
    """A sort key that puts arr_10 after arr_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
