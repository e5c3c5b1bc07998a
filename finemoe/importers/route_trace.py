"""BigMoeOnEdge's `route_trace v1` as a RoutingTrace: a CSV, gzipped or not, of every expert that every token selected.

Header lines begin with "#"; the second states layers, experts, and experts used. Columns read are turn, phase (0 prompt, 1
decode), step, layer, slot, expert and weight. A turn is a request; its prompt is one prefill. Publisher on GitHub:
Helldez/BigMoeOnEdge (Apache-2.0).
"""

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError, first_line
from finemoe.paths import ROOT
from finemoe.traces import DECODE, PREFILL, RoutingTrace

_COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert", "weight")
_TURN, _PHASE, _STEP, _LAYER, _SLOT, _EXPERT, _WEIGHT = range(7)
_SIZES = ("n_layer", "n_expert", "n_expert_used")
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error)


def sample_path() -> Path:
    """Where the development sample lies: in $FINEMOE_SHARED_DATA, or beside the checkout."""
    folder = Path(os.environ.get("FINEMOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder / "routing" / "bigmoe" / "gemma-4-26b.route.csv.gz"


def load_route_trace(path: str | Path, model: str = "") -> RoutingTrace:
    """The routing that such a file holds.

    Args:
        model: identity of the model.
    Raises:
        FinemoeError: the file is missing, damaged or incomplete, or holds what no router gives; it names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise FinemoeError(f"{path}: no such trace")
    try:
        with _opened(path) as lines:
            sizes = _sizes(path, lines)
            table = _table(path, lines)
    except _UNREADABLE as error:
        raise FinemoeError(f"{path}: not a route trace ({first_line(error)})") from error
    _require_complete(path, table, *sizes)
    return _trace(table, *sizes, model)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield file


def _sizes(path: Path, lines: Iterator[str]) -> tuple[int, int, int]:
    """(L, J, K) as the header states them; read on to where they all are."""
    header: dict[str, str] = {}
    for line in lines:
        if line.startswith("#"):
            header |= dict(re.findall(r"(\w+)=(\S+)", line))
        if all(header.get(name, "").isdigit() for name in _SIZES):
            return int(header["n_layer"]), int(header["n_expert"]), int(header["n_expert_used"])
    missing = next(name for name in _SIZES if not header.get(name, "").isdigit())
    raise FinemoeError(f"{path}: the header does not state {missing}")


def _table(path: Path, lines: Iterator[str]) -> np.ndarray:
    """The rows, [n, 7] float64 in the order of _COLUMNS."""
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    if missing := sorted(set(_COLUMNS) - set(reader.fieldnames or ())):
        raise FinemoeError(f"{path}: there is no column {missing[0]!r}")
    return np.array([_numbers(path, number, row) for number, row in enumerate(reader, 1)]).reshape(-1, len(_COLUMNS))


def _numbers(path: Path, number: int, row: dict[str, str]) -> list[float]:
    for name in _COLUMNS:
        try:
            float(row[name])
        except (TypeError, ValueError):
            raise FinemoeError(f"{path}: row {number}: {name} is {row[name]}, which is no number") from None
    return [float(row[name]) for name in _COLUMNS]


def _require_complete(path: Path, table: np.ndarray, num_layers: int, num_experts: int, top_k: int) -> None:
    """Every token has every layer's K experts, once each."""
    for column, bound in ((_LAYER, num_layers), (_SLOT, top_k), (_EXPERT, num_experts), (_PHASE, 2)):
        values = table[:, column]
        wrong = ~((values >= 0) & (values < bound) & (values % 1 == 0))
        if wrong.any():
            row = int(wrong.argmax())
            name, value = _COLUMNS[column], values[row]
            raise FinemoeError(f"{path}: row {row + 1}: {name} is {value:g}; they go from 0 to {bound - 1}")
    if not len(table):
        raise FinemoeError(f"{path}: it holds no row")
    _, firsts = np.unique(table[:, [_TURN, _STEP, _LAYER, _SLOT]], axis=0, return_index=True)
    if len(firsts) < len(table):
        row = int(np.setdiff1d(np.arange(len(table)), firsts)[0])
        raise FinemoeError(f"{path}: row {row + 1}: this token, layer and slot was there before")
    tokens, counts = np.unique(table[:, [_TURN, _STEP]], axis=0, return_counts=True)
    if (short := counts != num_layers * top_k).any():
        (turn, step), count = tokens[short.argmax()], counts[short.argmax()]
        raise FinemoeError(f"{path}: step {step:g} of turn {turn:g} has {count} rows, not {num_layers} layers x {top_k} experts")


def _trace(table: np.ndarray, num_layers: int, num_experts: int, top_k: int, model: str) -> RoutingTrace:
    table = table[np.lexsort(table[:, [_SLOT, _LAYER, _STEP, _TURN]].T)]
    shape = (-1, num_layers, top_k)
    tokens = table[:: num_layers * top_k]
    is_prompt = tokens[:, _PHASE] == 0
    _, firsts = np.unique(tokens[:, _TURN], return_index=True)
    offsets = np.append(firsts, len(tokens))
    since = tokens[:, _STEP] - np.repeat(tokens[firsts, _STEP], np.diff(offsets))
    return RoutingTrace.from_topk(
        table[:, _EXPERT].astype(np.int64).reshape(shape),
        table[:, _WEIGHT].astype(np.float32).reshape(shape),
        offsets,
        num_experts,
        step=np.where(is_prompt, 0, 1 + since.astype(np.int64)),
        phase=np.where(is_prompt, PREFILL, DECODE),
        model=model,
    )
