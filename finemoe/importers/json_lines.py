"""Routing as JSON lines: one object per request, token, token and layer, or activated expert.

Keys have the names of table columns (`columns.SYNONYMS`). The nesting of the experts' list determines what an object is:
[tokens][layers][K] is a request, [layers][K] a token, [K] one layer of a token, and a single number one expert. Weights, if any,
are lists of the same shape. A request may state `prompt_tokens`, the length of its prompt; smaller objects may have a phase.
Tokens without numbers keep the order of their lines. A document that is a list of such objects is also read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.columns import Roles, prompts_of, requests_of, require_ids, roles_of, settled_weights, whole
from finemoe.importers.gathering import Gathering
from finemoe.importers.long_rows import Block, Expected, routing_of_rows
from finemoe.importers.opening import Head, json_values
from finemoe.importers.routing import Options, Routing

NAME = "jsonl"
_BLOCK_VALUES = 1 << 17
_PROMPT_LENGTHS = ("prompt_tokens", "num_prompt_tokens", "prompt_len", "prompt_length")
_Objects = Iterator[tuple[int, dict[str, Any]]]


def matches(head: Head) -> bool:
    """Whether the first object has experts."""
    value = head.first_value
    return isinstance(value, dict) and _experts_key(value) is not None


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file.

    Raises:
        FinemoeError: an object is malformed; objects are counted from 1, as rows.
    """
    objects = _objects(path)
    first = next(objects, None)
    if first is None:
        raise FinemoeError("has no rows")
    depth = _depth(first[1])
    objects = _chained(first, objects)
    if depth == 3:
        return _of_requests(objects)
    roles = roles_of(first[1], is_nested=depth == 2)
    has_steps = roles.step is not None and roles.token is not None
    return routing_of_rows(_blocks(objects, roles, depth), Expected(has_steps=has_steps))


def _objects(path: Path) -> _Objects:
    for number, (place, value) in enumerate(json_values(path), 1):
        if not isinstance(value, dict):
            raise FinemoeError(f"row {number} ({place}) is not a JSON object; expected one with experts")
        yield number, {name: item for name, item in value.items() if item is not None}


def _chained(first: tuple[int, dict[str, Any]], rest: _Objects) -> _Objects:
    yield first
    yield from rest


def _experts_key(value: dict[str, Any]) -> str | None:
    try:
        return roles_of(value, is_nested=True).experts[0]
    except FinemoeError:
        return None


def _depth(value: dict[str, Any]) -> int:
    """How deeply the first object's experts are nested in lists."""
    experts, depth = value[roles_of(value, is_nested=True).experts[0]], 0
    while isinstance(experts, list):
        experts, depth = (experts[0] if experts else 0), depth + 1
    if depth > 3:
        raise FinemoeError(f"row 1: its experts are lists nested {depth} deep; expected at most [tokens][layers][K]")
    return depth


def _of_requests(objects: _Objects) -> Routing:
    gathering = Gathering()
    roles: Roles | None = None
    for number, value in objects:
        roles = roles or roles_of(value, is_nested=True)
        ids, weights = _arrays(roles, value, number, 3)
        length = next((value[name] for name in _PROMPT_LENGTHS if name in value), None)
        if isinstance(length, list | dict):
            raise FinemoeError(f"row {number}: its prompt length is not a number")
        num_prompt = None if length is None else int(whole("prompt_tokens", [length], number)[0])
        try:
            gathering.add(ids, weights, num_prompt, None if roles.request is None else value.get(roles.request))
        except FinemoeError as error:
            raise FinemoeError(f"row {number}: {error}") from error
    return gathering.routing()


def _blocks(objects: _Objects, roles: Roles, depth: int) -> Iterator[Block]:
    """Objects smaller than a request, as blocks of about `_BLOCK_VALUES` experts."""
    pending: list[tuple[int, dict[str, Any]]] = []
    size, top_k = 0, tuple[int, ...]()
    for number, value in objects:
        ids, weights = _arrays(roles, value, number, depth)
        rows = (1, -1) if depth < 2 else (-1, ids.shape[-1])
        top_k = top_k or ids.shape[-1:]
        if ids.shape[-1:] != top_k:
            raise FinemoeError(
                f"row {number}: {roles.experts[0]} has {ids.shape[-1]} experts, but row 1 has {top_k[0]}; K must not change"
            )
        pending.append(
            (number, value | {"ids": ids.reshape(rows), "weights": None if weights is None else weights.reshape(rows)})
        )
        size += ids.size
        if size >= _BLOCK_VALUES:
            yield _block(roles, pending, depth)
            pending, size = [], 0
    if pending:
        yield _block(roles, pending, depth)


def _block(roles: Roles, pending: list[tuple[int, dict[str, Any]]], depth: int) -> Block:
    first = pending[0][0]
    lengths = [len(value["ids"]) for _, value in pending]

    def column(name: str) -> list[Any]:
        missing = next((number for number, value in pending if name not in value), None)
        if missing is not None:
            raise FinemoeError(f"row {missing} lacks {name!r}, which the first row has")
        return [value[name] for _, value in pending]

    def numbers(name: str | None) -> np.ndarray:
        return np.zeros(len(pending), np.int64) if name is None else whole(name, column(name), first)

    layer = np.concatenate([np.arange(length) for length in lengths]) if depth == 2 else numbers(roles.layer)
    token = numbers(roles.token) if roles.token or roles.step else np.array([number for number, _ in pending])
    request = np.zeros(len(pending), np.int64) if roles.request is None else requests_of(column(roles.request))
    phase = None if roles.phase is None else prompts_of(roles.phase, column(roles.phase), first)
    return Block(
        first_row=first,
        request=np.repeat(request, lengths),
        step=np.repeat(numbers(roles.step), lengths),
        token=np.repeat(token, lengths),
        layer=layer,
        expert=np.concatenate([value["ids"] for _, value in pending]),
        weight=_joined([value["weights"] for _, value in pending]),
        is_prompt=None if phase is None else np.repeat(phase, lengths),
    )


def _joined(weights: list[np.ndarray | None]) -> np.ndarray | None:
    given = [array for array in weights if array is not None]
    return np.concatenate(given) if given else None


def _arrays(roles: Roles, value: dict[str, Any], number: int, depth: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids and weights of one object, of equal shape and nested as deeply as in the first object."""
    ids = _array(roles.experts, value, number, depth)
    if ids.dtype.kind not in "iu":
        raise FinemoeError(f"row {number}: {roles.experts[0]} has values that are not whole numbers")
    if ids.min() < 0:
        raise FinemoeError(f"row {number}: expert {ids.min()}; ids start at 0, so this was not recorded")
    require_ids(ids.reshape(1, -1), number)
    if not roles.weights:
        return ids.astype(np.uint16), None
    weights = _array(roles.weights, value, number, depth)
    if weights.shape != ids.shape:
        raise FinemoeError(f"row {number}: weights of shape {list(weights.shape)} for experts of shape {list(ids.shape)}")
    with np.errstate(over="ignore"):
        numbers = weights.astype(np.float32) if weights.dtype.kind in "iuf" else None
    settled = None if numbers is None else settled_weights(numbers.reshape(1, -1), number)
    if settled is None:
        raise FinemoeError(f"row {number}: {roles.weights[0]} has values that are not numbers; leave it out if there are none")
    return ids.astype(np.uint16), settled.reshape(ids.shape)


def _array(names: tuple[str, ...], value: dict[str, Any], number: int, depth: int) -> np.ndarray:
    """The lists under one key, or the single numbers under several keys."""
    missing = next((name for name in names if name not in value), None)
    if missing is not None:
        raise FinemoeError(f"row {number} lacks {missing!r}, which the first row has")
    try:
        array = np.asarray(value[names[0]] if len(names) == 1 else [value[name] for name in names])
    except ValueError:
        raise FinemoeError(
            f"row {number}: {names[0]} holds lists of different lengths; every token needs K experts in every layer"
        ) from None
    if array.ndim != depth + (len(names) > 1) or not array.size:
        raise FinemoeError(
            f"row {number}: {names[0]} is nested {array.ndim} deep with {array.size} values, not {depth} deep as in row 1"
        )
    return array
