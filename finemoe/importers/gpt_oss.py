"""The public gpt-oss-20b routing (top-4 of 32, decode only, Apache-2.0) as a RoutingTrace.

Reads the publisher's own files, one request each, or a single npz that holds many. The publisher on GitHub is
AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting; its files are `data/**/*_examples.json`, gzipped or not.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options, Routing
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace

NUM_EXPERTS = 32
MODEL = "gpt-oss-20b"
UNPACKED = "gpt-oss-20b-bf16"  # the configuration with experts in bf16, as in the paper's setting
NAME = "gpt-oss"
_HISTORY_SHARE = 0.7
_ARRAYS = ("expert_ids", "expert_probs", "offsets")
_UNREADABLE = (OSError, EOFError, ValueError, BadZipFile, zlib.error)
_Routing = dict[str, Any]


def sample_path() -> Path:
    """Path of the development sample: in $FINEMOE_SHARED_DATA, or next to the checkout."""
    folder = Path(os.environ.get("FINEMOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder / "routing" / "gpt-oss-20b" / "decode_traces.npz"


def load_gpt_oss(path: str | Path, seed: int = 0) -> RoutingTrace:
    """Load the public routing, with its requests split 7:3 at random into history and served.

    Requests are named dataset/category/row; those of an npz only if its requests.jsonl.gz is in the same folder.

    Args:
        path: an npz with expert_ids [T, L, K], expert_probs [T, L, K] and offsets [R + 1]; or one of the publisher's
            `*_examples.json` or `*_examples.json.gz`; or a folder of these, read in the order of their paths.
        seed: seed of the split.
    Raises:
        FinemoeError: a file is missing, damaged or incomplete, or has values that a router cannot produce; names file and row.
    """
    path = Path(path)
    if not path.exists():
        raise FinemoeError(f"{path}: no such trace; finemoe.importers.gpt_oss names its publisher")
    routing = _of_folder(path) if path.is_dir() else _of_npz(path) if path.suffix == ".npz" else _of_file(path)
    num_requests = len(routing["offsets"]) - 1
    is_history = np.random.default_rng(seed).permutation(num_requests) < round(_HISTORY_SHARE * num_requests)
    with _named(path):
        return _trace(routing, splits=tuple("history" if flag else "served" for flag in is_history))


def matches(head: Head) -> bool:
    """Whether this is one of the publisher's files."""
    value = head.first_value
    return isinstance(value, dict) and "router_data" in value


def matches_folder(folder: Path) -> bool:
    """Whether the folder holds the publisher's files."""
    return next(folder.rglob("*_examples.json*"), None) is not None


def read(path: Path, options: Options) -> Routing:
    """Read a file or a folder like `load_gpt_oss`, without a split.

    Raises:
        FinemoeError: a file is missing, damaged or incomplete, or has values that a router cannot produce; names file and row.
    """
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    return Routing(
        expert_ids=found["expert_ids"],
        weights=found["expert_probs"],
        offsets=found["offsets"],
        is_prompt=np.zeros(len(found["expert_ids"]), dtype=np.bool_),
        num_experts=NUM_EXPERTS,
        model=MODEL,
        request_ids=found["request_ids"],
    )


def _trace(routing: _Routing, splits: tuple[str, ...] = ()) -> RoutingTrace:
    ids, probs = routing["expert_ids"], routing["expert_probs"]
    if ids.shape != probs.shape:
        raise FinemoeError(f"expert_ids {ids.shape} and expert_probs {probs.shape} differ in shape")
    order = np.argsort(-probs, axis=-1, kind="stable")
    ordered = {"expert_ids": np.take_along_axis(ids, order, axis=-1), "expert_probs": np.take_along_axis(probs, order, axis=-1)}
    return RoutingTrace.from_topk(**(routing | ordered), num_experts=NUM_EXPERTS, splits=splits, model=MODEL)


def _of_npz(path: Path) -> _Routing:
    with _named(path), np.load(path) as arrays:
        missing = set(_ARRAYS) - set(arrays)
        if missing:
            raise FinemoeError(f"lacks the array(s) {', '.join(sorted(missing))}")
        routing = {name: arrays[name] for name in _ARRAYS}
    names = path.with_name("requests.jsonl.gz")
    return routing | ({"request_ids": _request_names(names)} if names.is_file() else {})


def _request_names(path: Path) -> tuple[str, ...]:
    with _named(path), gzip.open(path, "rt", encoding="utf-8") as lines:
        return tuple(_name(json.loads(line), "request") for line in lines)


def _name(request: dict[str, Any], row: str) -> str:
    missing = {"dataset", "category", row} - set(request)
    if missing:
        raise FinemoeError(f"a request lacks {', '.join(sorted(missing))}")
    return f"{request['dataset']}/{request['category']}/{request[row]}"


def _of_folder(folder: Path) -> _Routing:
    files = sorted(path for path in folder.rglob("*_examples.json*") if path.name.endswith((".json", ".json.gz")))
    if not files:
        raise FinemoeError(f"{folder}: has no *_examples.json or *_examples.json.gz, the names of the publisher's files")
    requests = [_of_file(path) for path in files]
    shapes = [request["expert_ids"].shape for request in requests]
    for path, shape in zip(files, shapes, strict=True):
        if shape[1:] != shapes[0][1:]:
            raise FinemoeError(f"{path}: has {shape[1:]} layers and experts per token, but {files[0].name} {shapes[0][1:]}")
    return {
        "expert_ids": np.concatenate([request["expert_ids"] for request in requests]),
        "expert_probs": np.concatenate([request["expert_probs"] for request in requests]),
        "offsets": np.cumsum([0, *(shape[0] for shape in shapes)]),
        "request_ids": tuple(request["request_ids"][0] for request in requests),
    }


def _of_file(path: Path) -> _Routing:
    """The single request of a publisher's file, validated separately so that errors count rows within the file."""
    with _named(path), (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        request = json.load(file)
        if not isinstance(request, dict) or not isinstance(request.get("router_data"), list) or not request["router_data"]:
            raise FinemoeError("is not a request with router_data; expected one of the publisher's *_examples.json")
        ids, probs = _router_data(request["router_data"])
        routing = {"expert_ids": ids, "expert_probs": probs, "offsets": np.array([0, len(ids)])}
        _trace(routing)
        return routing | {"request_ids": (_name(request, "row_index"),)}


def _router_data(entries: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Experts and probabilities [n, L, K] of the publisher's list: one {"token_99": {"layer_0": {...}, ...}} per row."""
    tokens = [_token(entry, row) for row, entry in enumerate(entries)]
    first_number, first_ids, _ = tokens[0]
    for row, (number, ids, _) in enumerate(tokens):
        if ids.shape != first_ids.shape:
            raise FinemoeError(f"row {row} has {ids.shape} layers and experts, but row 0 {first_ids.shape}")
        if number != first_number + row:
            raise FinemoeError(f"row {row} is token {number}, not {first_number + row}; tokens must be consecutive")
    return np.stack([ids for _, ids, _ in tokens]), np.stack([probs for _, _, probs in tokens])


def _token(entry: dict[str, Any], row: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number, experts [L, K] and probabilities [L, K] of one entry."""
    try:
        ((name, layers),) = entry.items()
        ordered = [layers[f"layer_{index}"] for index in range(len(layers))]
        ids, probs = ([layer[key] for layer in ordered] for key in ("selected_experts", "selected_probs"))
        counts = {len(values) for values in (*ids, *probs)}
        if len(counts) > 1:
            raise ValueError(f"its layers list {sorted(counts)} experts or probabilities, not equally many")
        # A safe cast refuses values that are not numbers, and fractions for experts.
        number = int(name.removeprefix("token_"))
        return number, np.array(ids).astype(np.int64, casting="safe"), np.array(probs).astype(np.float64, casting="safe")
    except KeyError as error:
        raise FinemoeError(f"row {row} lacks {error.args[0]}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise FinemoeError(f"row {row} is not in the publisher's format: {error}") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Prefix errors with the file's name."""
    try:
        yield
    except FinemoeError as error:
        raise FinemoeError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise FinemoeError(f"{path}: damaged, or of another format ({error})") from error
