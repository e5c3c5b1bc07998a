"""llama.cpp's `moe-trace` example: a CSV without a header, `layer,expert` for every expert of every token.

For each computed batch, layer by layer, it writes the experts of all tokens. The file does not mark the end of a token, but it
can be inferred: the rows of a layer are contiguous, a new batch begins where the layers start over, and a generated token has K
rows in every layer, the smallest number in any batch. Batches of several tokens are prompts and are left out, because the example
writes wrong experts for them: it reads the tokens' experts as if they were contiguous, but in the tensor each token has room for
all J, so only the first token's are correct; in addition, the last layer has only the last token. Sources: ggml-org/llama.cpp
pull request 28544 (2026-09), a copy in savoflux-spec/AI.local at f830d47, and the fork Cartaz/llama.cpp-vulkan-moe at 9149912,
which describes the error. That fork's own CSV, with columns phase, token, layer, rank and expert, is correct and is read as a
`table`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.columns import require_ids
from finemoe.importers.gathering import joined
from finemoe.importers.long_rows import layers_left_out
from finemoe.importers.opening import Head, open_text
from finemoe.importers.routing import Options, Routing

NAME = "moe-trace"
_BLOCK_BYTES = 1 << 20
_ROW = re.compile(r"\d+,\d+")
_HEADER = "layer,expert"
_Run = tuple[int, int, np.ndarray]  # layer, number of its first row, and its experts [n]


def matches(head: Head) -> bool:
    """Whether the first lines are pairs of numbers."""
    first = [line for line in head.lines[:20] if line != _HEADER]
    return bool(first) and all(_ROW.fullmatch(line) for line in first[: len(first) - (len(head.lines) <= 20 < len(first))])


def read(path: Path, options: Options) -> Routing:
    """Read the generated tokens of such a file, one request.

    Raises:
        FinemoeError: a row is not a pair of numbers, or layers are out of order; rows are counted from 1.
    """
    alike: dict[int, list[np.ndarray]] = {}  # batches by their number of rows in every layer, [L, n] each
    lengths: dict[int, int] = {}  # length of a run -> first row of the first run of that length
    layers: list[int] = []
    for batch in _batches(_runs(path)):
        found = [layer for layer, _, _ in batch]
        layers = layers or found
        if found != layers:
            odd = next((at for at, pair in enumerate(zip(found, layers, strict=False)) if pair[0] != pair[1]), len(layers) - 1)
            row = batch[min(odd, len(batch) - 1)][1]
            raise FinemoeError(
                f"row {row}: this batch has layers {_told(found)}, but the first {_told(layers)}; the file is truncated"
            )
        counts = {len(experts) for _, _, experts in batch}
        lengths = {len(experts): row for _, row, experts in reversed(batch)} | lengths
        if len(counts) == 1:
            alike.setdefault(counts.pop(), []).append(np.stack([experts for _, _, experts in batch]).astype(np.uint16))
    return _routing(alike, lengths, layers, options)


def _routing(alike: dict[int, list[np.ndarray]], lengths: dict[int, int], layers: list[int], options: Options) -> Routing:
    if not lengths:
        raise FinemoeError("has no rows")
    if len(layers) < 2:
        raise FinemoeError("has only one layer, so the end of a token cannot be determined; use a recorder that numbers tokens")
    top_k = options.size("top_k") or min(alike or lengths)
    if odd := [length for length in lengths if length % top_k]:
        told = f"row {lengths[odd[0]]}: a layer has {odd[0]} rows here, which is not a multiple of K = {top_k}"
        raise FinemoeError(f"{told}; rows are missing, or K must be given (--top-k)")
    if top_k not in alike:
        raise FinemoeError("has only prompts, for which this recorder writes wrong experts; record generated tokens as well")
    ids = joined([batch[None] for batch in alike[top_k]])
    notes = [f"K = {top_k} is taken from the smallest batch"] if options.size("top_k") is None else []
    if len(lengths) > 1 or len(alike) > 1:
        notes.append("batches of several tokens are left out: this recorder writes wrong experts for them")
    notes += layers_left_out(np.array(layers))
    return Routing(
        expert_ids=ids,
        weights=None,
        offsets=np.array([0, len(ids)]),
        is_prompt=np.zeros(len(ids), dtype=np.bool_),
        notes=tuple(notes),
    )


def _batches(runs: Iterator[_Run]) -> Iterator[list[_Run]]:
    """The runs of one batch, which ends where the layers start over."""
    batch: list[_Run] = []
    for run in runs:
        if batch and run[0] <= batch[-1][0]:
            yield batch
            batch = []
        batch.append(run)
    if batch:
        yield batch


def _runs(path: Path) -> Iterator[_Run]:
    """Contiguous rows of one layer."""
    layer, first, pieces = -1, 1, list[np.ndarray]()
    for number, values in _blocks(path):
        bounds = np.flatnonzero(np.append(True, values[1:, 0] != values[:-1, 0])).tolist()
        for begin, end in zip(bounds, [*bounds[1:], len(values)], strict=True):
            if pieces and int(values[begin, 0]) != layer:
                yield layer, first, np.concatenate(pieces)
                pieces = []
            if not pieces:
                layer, first = int(values[begin, 0]), number + begin
            pieces.append(values[begin:end, 1])
    if pieces:
        yield layer, first, np.concatenate(pieces)


def _blocks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows [n, 2], each with the number of its first row."""
    number = 1
    with open_text(path) as file:
        while lines := file.readlines(_BLOCK_BYTES):
            rows = [text for line in lines if (text := line.strip()) and text != _HEADER]
            for at, row in enumerate(rows):
                if not _ROW.fullmatch(row):
                    raise FinemoeError(f"row {number + at} is {row[:40]!r}; expected layer,expert as two whole numbers")
            if rows:
                values = np.array(",".join(rows).split(","), dtype=np.int64).reshape(-1, 2)
                require_ids(values, number)
                yield number, values
            number += len(rows)


def _told(layers: list[int]) -> str:
    return f"{layers[0]}..{layers[-1]}" if layers == list(range(layers[0], layers[-1] + 1)) else ", ".join(map(str, layers))
