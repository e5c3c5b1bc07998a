"""Tables with one activated expert (or a few) per row, in any order, as routing.

Rows are read once and kept packed on disk until all requests, tokens and layers are known; then every expert is put in its place.
Memory never holds more than the routing itself, the keys of its tokens, and one block of rows.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.routing import Routing

_MOST_LAYERS = 1 << 16


@dataclass(frozen=True)
class Block:
    """n rows of a table; each names M experts of one layer of one token.

    Attributes:
        first_row: number of the first row, counted from 1.
        request: [n] ints or strings. step, token: [n] ints; 0 if the table has no such column.
        layer: [n] ints. expert: [n, M] ints. weight: [n, M] float32, or None. is_prompt: [n] bools, or None.
    """

    first_row: int
    request: np.ndarray
    step: np.ndarray
    token: np.ndarray
    layer: np.ndarray
    expert: np.ndarray
    weight: np.ndarray | None
    is_prompt: np.ndarray | None


@dataclass(frozen=True)
class Expected:
    """What a file states about itself, or what is known of its recorder.

    Attributes:
        top_k: K. num_experts: J. num_layers: of the model, including dense layers. has_steps: rows with equal `step` are one
            iteration.
        is_last_layer_short: the last layer routes only the last token of a prompt, as in llama.cpp, which needs no other logits.
            Its experts then stand in for the other prompt tokens in that layer, so that the prompt demands what it demanded.
    """

    top_k: int | None = None
    num_experts: int | None = None
    num_layers: int | None = None
    has_steps: bool = False
    is_last_layer_short: bool = False


def routing_of_rows(rows: Iterable[Block], expected: Expected, expert_bytes: Mapping[int, int] | None = None) -> Routing:
    """The routing in a table's rows, with requests and tokens in ascending order.

    Args:
        rows: the table in blocks. expected: see `Expected`.
        expert_bytes: bytes of one expert by layer number; used if every layer with rows has an entry.
    Raises:
        FinemoeError: a token lacks a layer's experts or has too many; names the token and, where possible, the row.
    """
    with tempfile.TemporaryFile() as file:
        survey = _Survey(file)
        for block in rows:
            _require_bounds(block, expected)
            survey.add(block)
        table = _Table(survey, expected)
        for block in survey.again():
            table.put(block)
    return table.routing(expected, expert_bytes or {})


def _require_bounds(block: Block, expected: Expected) -> None:
    """Refuse layers and experts beyond what the file states, naming their row."""
    experts = block.expert.max(axis=1)
    num_layers = expected.num_layers or _MOST_LAYERS
    for name, values, bound in (("layer", block.layer, num_layers), ("expert", experts, expected.num_experts)):
        if bound is not None and (wrong := values >= bound).any():
            row = int(np.argmax(wrong))
            raise FinemoeError(f"row {block.first_row + row}: {name} is {values[row]}; it must be in 0..{bound - 1}")


class _Survey:
    """Collects which requests, tokens and layers there are; writes the rows themselves to a file."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names: dict[Any, int] = {}
        self.keys = np.zeros((0, 3), dtype=np.int64)
        self.layers = np.zeros(0, dtype=np.int64)
        self.num_rows = self.num_experts = 0
        self.pending: list[np.ndarray] = []

    def add(self, block: Block) -> None:
        request = self.codes(block.request)
        for array in (request, block.step, block.token, block.layer, block.expert, *_optional(block)):
            np.save(self.file, array, allow_pickle=False)
        self.layers = np.union1d(self.layers, block.layer)
        self.num_rows += len(request)
        self.num_experts += block.expert.size
        self.pending.append(_distinct(np.stack([request, block.step, block.token], axis=1)))
        if sum(map(len, self.pending)) > max(1 << 17, len(self.keys)):
            self.settle()

    def settle(self) -> None:
        self.keys = _distinct(np.concatenate([self.keys, *self.pending]))
        self.pending = []

    def codes(self, requests: np.ndarray) -> np.ndarray:
        """Numbers for requests, in the order of their first row."""
        values, places = np.unique(requests, return_inverse=True)
        known = [self.names.setdefault(value, len(self.names)) for value in values.tolist()]
        return np.array(known, dtype=np.int64)[places]

    def again(self) -> Iterator[Block]:
        """Read the rows again, with requests replaced by their numbers."""
        self.file.seek(0)
        row = 1
        while row <= self.num_rows:
            request, step, token, layer, expert, weight, is_prompt = (np.load(self.file) for _ in range(7))
            yield Block(
                *(row, request, step, token, layer, expert),
                weight=weight if weight.size else None,
                is_prompt=is_prompt if is_prompt.size else None,
            )
            row += len(request)


def _optional(block: Block) -> tuple[np.ndarray, np.ndarray]:
    absent = np.zeros(0)
    return (absent if block.weight is None else block.weight, absent if block.is_prompt is None else block.is_prompt)


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Distinct keys [n, 3], ascending."""
    keys = keys[np.append(True, (keys[1:] != keys[:-1]).any(axis=1))] if len(keys) else keys
    keys = keys[np.lexsort(keys.T[::-1])]
    return keys[np.append(True, (keys[1:] != keys[:-1]).any(axis=1))] if len(keys) else keys


class _Table:
    """The arrays that rows are written into."""

    def __init__(self, survey: _Survey, expected: Expected) -> None:
        survey.settle()
        if not len(survey.keys):
            raise FinemoeError("has no rows")
        self.names, ranks = _in_order(survey.names)
        self.ranks = ranks
        self.keys = survey.keys
        self.keys[:, 0] = ranks[self.keys[:, 0]]
        self.keys = self.keys[np.lexsort(self.keys.T[::-1])]
        self.distinct = [np.unique(self.keys[:, column]) for column in range(3)]
        self.packed = self.pack(self.keys)
        self.layers = survey.layers
        places = len(self.keys) * len(self.layers)
        if survey.num_experts * 2 < places:  # before memory is allocated
            told = f"{len(self.keys)} tokens x {len(self.layers)} layers"
            raise FinemoeError(
                f"has {survey.num_experts} experts for {told}; every token needs K in every layer, or columns are mixed up"
            )
        self.top_k = expected.top_k or max(1, round(survey.num_experts / places))
        shape = (len(self.keys), len(self.layers), self.top_k)
        self.ids = np.zeros(shape, dtype=np.uint16)
        self.weights: np.ndarray | None = None
        self.prompts: np.ndarray | None = None
        self.filled = np.zeros(shape[:2], dtype=np.uint16)

    def pack(self, keys: np.ndarray) -> np.ndarray:
        """One number per key [n, 3], in the same order as the keys."""
        request, step, token = (np.searchsorted(self.distinct[column], keys[:, column]) for column in range(3))
        return (request * len(self.distinct[1]) + step) * len(self.distinct[2]) + token

    def put(self, block: Block) -> None:
        keys = np.stack([self.ranks[block.request], block.step, block.token], axis=1)
        token = np.searchsorted(self.packed, self.pack(keys))
        layer = np.searchsorted(self.layers, block.layer)
        slot = self.slots(block, token, layer)
        where = (np.repeat(token, block.expert.shape[1]), np.repeat(layer, block.expert.shape[1]), slot)
        self.ids[where] = block.expert.reshape(-1)
        if block.first_row > 1 and (block.weight is None) != (self.weights is None):
            raise FinemoeError(
                f"row {block.first_row}: some rows have weights and others do not; give weights in all rows or in none"
            )
        if block.weight is not None:
            if self.weights is None:
                self.weights = np.zeros(self.ids.shape, dtype=np.float32)
            self.weights[where] = block.weight.reshape(-1)
        if block.is_prompt is not None:
            self.mark(block, token, block.is_prompt)

    def slots(self, block: Block, token: np.ndarray, layer: np.ndarray) -> np.ndarray:
        """The next free places for each row's token and layer, [n * M]."""
        width = block.expert.shape[1]
        place = token * len(self.layers) + layer
        order = np.argsort(place, kind="stable")
        ordered = place[order]
        begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        counts = np.diff(np.append(begins, len(place)))
        earlier = np.empty(len(place), dtype=np.int64)
        earlier[order] = np.arange(len(place)) - np.repeat(begins, counts)
        filled = self.filled.reshape(-1)
        first = filled[place].astype(np.int64) + earlier * width
        if (over := first + width > self.top_k).any():
            row = int(np.argmax(over))
            what = f"row {block.first_row + row}: {self.named(token[row])}, layer {block.layer[row]}"
            raise FinemoeError(f"{what} has more than {self.top_k} experts; is a row repeated, or a key column missing?")
        filled[ordered[begins]] += (counts * width).astype(np.uint16)
        return (first[:, None] + np.arange(width)).reshape(-1)

    def mark(self, block: Block, token: np.ndarray, is_prompt: np.ndarray) -> None:
        """Record which tokens belong to a prompt; all rows of a token must agree."""
        if self.prompts is None:
            self.prompts = np.full(len(self.keys), 2, dtype=np.uint8)
        is_new = self.prompts[token] == 2
        self.prompts[token[is_new][::-1]] = is_prompt[is_new][::-1]  # reversed, so that the first of several rows counts
        if (wrong := self.prompts[token] != is_prompt).any():
            row = int(np.argmax(wrong))
            raise FinemoeError(f"row {block.first_row + row}: {self.named(token[row])} has another phase in another row")

    def named(self, token: int) -> str:
        request, step, position = self.keys[token]
        numbers = {"step": step, "token": position}
        told = [f"{name} {numbers[name]}" for place, name in ((1, "step"), (2, "token")) if len(self.distinct[place]) > 1]
        return ", ".join([f"request {self.names[request]}", *told])

    def complete_prompts(self) -> tuple[str, ...]:
        """If the last layer has only a prompt's last token, copy its experts to the other prompt tokens; returns notes."""
        if self.prompts is None:
            return ()
        count = 0
        bounds = np.searchsorted(self.keys[:, 0], np.arange(len(self.names) + 1)).tolist()
        for begin, end in itertools.pairwise(bounds):
            last = begin + int((self.prompts[begin:end] == 1).sum()) - 1  # the prompt is at the start of its request
            others = slice(begin, max(begin, last))
            if others.stop > begin and self.filled[last, -1] == self.top_k and not self.filled[others, -1].any():
                self.ids[others, -1] = self.ids[last, -1]
                if self.weights is not None:
                    self.weights[others, -1] = self.weights[last, -1]
                self.filled[others, -1] = self.top_k
                count += others.stop - begin
        what = f"layer {self.layers[-1]} routes only the last token of a prompt: its experts stand in for {count} others there"
        return (what,) if count else ()

    def routing(self, expected: Expected, expert_bytes: Mapping[int, int]) -> Routing:
        notes = self.complete_prompts() if expected.is_last_layer_short else ()
        if (short := self.filled != self.top_k).any():
            token, layer = np.unravel_index(int(np.argmax(short)), short.shape)
            what = f"{self.named(int(token))}, layer {self.layers[layer]}"
            raise FinemoeError(
                f"{what} has {self.filled[token, layer]} experts, not {self.top_k}; rows are missing, or K differs"
            )
        offsets = np.searchsorted(self.keys[:, 0], np.arange(len(self.names) + 1))
        return Routing(
            expert_ids=self.ids,
            weights=self.weights,
            offsets=offsets,
            is_prompt=None if self.prompts is None else self.prompts == 1,
            iteration=self.keys[:, 1] if expected.has_steps else None,
            num_experts=expected.num_experts,
            request_ids=self.names,
            expert_bytes=tuple(sizes) if all(sizes := [expert_bytes.get(int(layer), 0) for layer in self.layers]) else (),
            notes=notes + layers_left_out(self.layers),
        )


def _in_order(names: dict[Any, int]) -> tuple[tuple[Any, ...], np.ndarray]:
    """Names of requests in ascending order, numeric if all are numbers; and the rank of each code, [R]."""
    listed = list(names)
    try:
        values: list[Any] = [int(name) for name in listed]
    except ValueError:
        values = [str(name) for name in listed]
    order = sorted(range(len(values)), key=lambda code: values[code])
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return tuple(values[code] for code in order), ranks


def layers_left_out(layers: np.ndarray) -> tuple[str, ...]:
    """A note if layer numbers have gaps or do not start at 0: dense layers route nothing."""
    missing = np.setdiff1d(np.arange(layers[-1] + 1), layers)
    if not len(missing):
        return ()
    told = ", ".join(map(str, missing[:8].tolist())) + (", ..." if len(missing) > 8 else "")
    return (f"layers without rows are left out ({told}); the others keep their order",)
