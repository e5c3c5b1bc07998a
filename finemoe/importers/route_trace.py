"""BigMoeOnEdge's `route_trace v1` as a RoutingTrace: a CSV, gzipped or not, of every expert that every token selected.

Header lines begin with "#"; the second states layers, experts, and experts used. Columns read are turn, phase (0 prompt, 1
decode), step, layer, slot, expert and weight. A turn is a request; its prompt is one prefill. Publisher on GitHub:
Helldez/BigMoeOnEdge (Apache-2.0).
"""

import gzip
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from finemoe.errors import FinemoeError, first_line
from finemoe.paths import ROOT
from finemoe.traces import DECODE, PREFILL, RoutingTrace

_COLUMNS = ["turn", "phase", "step", "layer", "slot", "expert", "weight"]
_SIZES = ("n_layer", "n_expert", "n_expert_used")
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error, ValueError)


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
        num_layers, num_experts, top_k = _sizes(path)
        table = pd.read_csv(path, comment="#", usecols=_COLUMNS)
    except FinemoeError:
        raise
    except _UNREADABLE as error:
        raise FinemoeError(f"{path}: not a route trace ({first_line(error)})") from error
    _require_complete(path, table, num_layers, num_experts, top_k)
    return _trace(table, num_layers, num_experts, top_k, model)


def _sizes(path: Path) -> tuple[int, int, int]:
    """(L, J, K) as the header states them."""
    header: dict[str, str] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            if not line.startswith("#"):
                break
            header |= dict(re.findall(r"(\w+)=(\S+)", line))
    if missing := [name for name in _SIZES if not header.get(name, "").isdigit()]:
        raise FinemoeError(f"{path}: the header does not state {missing[0]}")
    num_layers, num_experts, top_k = (int(header[name]) for name in _SIZES)
    return num_layers, num_experts, top_k


def _require_complete(path: Path, table: pd.DataFrame, num_layers: int, num_experts: int, top_k: int) -> None:
    """Every token has every layer's K experts, once each."""
    for name, bound in (("layer", num_layers), ("slot", top_k), ("expert", num_experts), ("phase", 2)):
        values = pd.to_numeric(table[name], errors="coerce")
        if (wrong := ~(values.between(0, bound - 1) & (values % 1 == 0))).any():
            row = int(wrong.to_numpy().argmax())
            raise FinemoeError(f"{path}: row {row + 1}: {name} is {table[name].iloc[row]}; they go from 0 to {bound - 1}")
    if table.empty:
        raise FinemoeError(f"{path}: it holds no row")
    places = ["turn", "step", "layer", "slot"]
    if (repeated := table.duplicated(places)).any():
        raise FinemoeError(f"{path}: row {int(repeated.to_numpy().argmax()) + 1}: this token, layer and slot was there before")
    counts = table.groupby(["turn", "step"]).size()
    if (short := counts[counts != num_layers * top_k]).size:
        (turn, step), count = short.index[0], short.iloc[0]
        raise FinemoeError(f"{path}: step {step} of turn {turn} has {count} rows, not {num_layers} layers x {top_k} experts")


def _trace(table: pd.DataFrame, num_layers: int, num_experts: int, top_k: int, model: str) -> RoutingTrace:
    ordered = table.sort_values(["turn", "step", "layer", "slot"], kind="stable")
    shape = (-1, num_layers, top_k)
    tokens = ordered.iloc[:: num_layers * top_k]
    is_prompt = tokens.phase.to_numpy() == 0
    _, firsts = np.unique(tokens.turn.to_numpy(), return_index=True)
    offsets = np.append(firsts, len(tokens))
    steps = np.where(is_prompt, 0, 1 + tokens.step.to_numpy() - np.repeat(tokens.step.to_numpy()[firsts], np.diff(offsets)))
    return RoutingTrace.from_topk(
        ordered.expert.to_numpy().reshape(shape),
        ordered.weight.to_numpy(np.float32).reshape(shape),
        offsets,
        num_experts,
        step=steps,
        phase=np.where(is_prompt, PREFILL, DECODE),
        model=model,
    )
