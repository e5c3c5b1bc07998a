"""BigMoeOnEdge's `route_trace v1`: a CSV, gzipped or not, of every expert that every token selected.

Header lines start with "#": the second states the number of layers, experts, and active experts; the following lines state the
bytes of an expert for each layer. The columns read are turn, phase (0 prompt, 1 decode), step (position in the context), layer,
expert and weight. A turn is a request; its prompt is one prefill. Dense layers have no rows; weights that the recorder did not
see are "nan"; the last layer may route only the last token of a prompt. Publisher on GitHub: Helldez/BigMoeOnEdge (Apache-2.0),
docs/telemetry.md at 4e4796a.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.importers.columns import Roles
from finemoe.importers.long_rows import Expected, routing_of_rows
from finemoe.importers.opening import Head, named, open_text
from finemoe.importers.routing import Options, Routing, trace_of
from finemoe.importers.table import csv_blocks
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace

NAME = "route-trace"
_ROLES = Roles(layer="layer", experts=("expert",), weights=("weight",), request="turn", step="step", phase="phase")
_SIZES = ("n_layer", "n_expert", "n_expert_used")
_MAGIC = b"# route_trace v1"


def sample_path() -> Path:
    """Path of the development sample: in $FINEMOE_SHARED_DATA, or next to the checkout."""
    folder = Path(os.environ.get("FINEMOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder / "routing" / "bigmoe" / "gemma-4-26b.route.csv.gz"


def load_route_trace(path: str | Path, model: str = "") -> RoutingTrace:
    """Load the routing in such a file.

    Args:
        model: identity of the model.
    Raises:
        FinemoeError: the file is missing, damaged or incomplete, or has values that a router cannot produce; names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise FinemoeError(f"{path}: no such trace")
    with named(path):
        options = Options(model=model)
        return trace_of(read(path, options), options)[0]


def matches(head: Head) -> bool:
    """Whether the first line names this format."""
    return head.start.startswith(_MAGIC)


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file.

    Raises:
        FinemoeError: the header lacks a size, or a row is malformed; data rows are counted from 1.
    """
    with open_text(path) as lines:
        stated, expert_bytes, names = _header(lines)
        if missing := [name for name in _ROLES.names() if name not in names]:
            raise FinemoeError(
                f"there is no column {missing[0]!r}; the columns of route_trace v1 are turn, phase, step, layer, ..."
            )
        expected = Expected(
            top_k=stated["n_expert_used"],
            num_experts=stated["n_expert"],
            num_layers=stated["n_layer"],
            is_last_layer_short=True,
        )
        rows = csv_blocks(lines, names, _ROLES)
        return routing_of_rows(rows, expected, expert_bytes)


def _header(lines: Iterable[str]) -> tuple[dict[str, int], dict[int, int], list[str]]:
    """Sizes, bytes of an expert of each layer, and the column names, which end the header."""
    stated: dict[str, str] = {}
    expert_bytes: dict[int, int] = {}
    names: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            names = line.strip().split(",")
            break
        told = dict(re.findall(r"(\w+)=(\S+)", line))
        if told.get("layer", "").isdigit() and told.get("expert_bytes", "").isdigit():
            expert_bytes[int(told["layer"])] = int(told["expert_bytes"])
        else:
            stated |= told
    missing = [name for name in _SIZES if not stated.get(name, "").isdigit() or int(stated[name]) < 1]
    if missing:
        raise FinemoeError(f"the header does not state {missing[0]}; its second line has n_layer, n_expert and n_expert_used")
    return {name: int(stated[name]) for name in _SIZES}, expert_bytes, names
