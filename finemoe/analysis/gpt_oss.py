"""Figure 4 on real routing: the public gpt-oss-20b top-k traces (369 requests, decode only, Apache-2.0).

The trace itself is not part of the project; `python -m finemoe.analysis.gpt_oss TRACE.npz` computes the table that is shipped
under data/reference/, so that the figure shows this panel anywhere. Publisher on GitHub:
AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting.
"""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from finemoe.analysis.prediction import prediction_table
from finemoe.errors import FinemoeError
from finemoe.paths import DATA, ROOT
from finemoe.plotting import save_table
from finemoe.traces import RoutingTrace

NUM_EXPERTS = 32
MODEL, DATASET = "gpt-oss-20b", "mixed"


def sample_path() -> Path:
    """Where the development sample lies: in $FINEMOE_SHARED_DATA, or beside the checkout."""
    folder = Path(os.environ.get("FINEMOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder / "routing" / "gpt-oss-20b" / "decode_traces.npz"


def load_gpt_oss(path: Path, seed: int = 0) -> RoutingTrace:
    """The public trace, its requests split 7:3 at random into history and served.

    Raises:
        FinemoeError: the file is missing or lacks an array.
    """
    if not path.is_file():
        raise FinemoeError(f"{path}: no such trace; the README of the data names its publisher")
    with np.load(path) as arrays:
        missing = {"expert_ids", "expert_probs", "offsets"} - set(arrays)
        if missing:
            raise FinemoeError(f"{path}: lacks the array(s) {', '.join(sorted(missing))}")
        ids, probs, offsets = arrays["expert_ids"], arrays["expert_probs"], arrays["offsets"]
    order = np.argsort(-probs, axis=-1, kind="stable")
    is_history = np.random.default_rng(seed).permutation(len(offsets) - 1) < round(0.7 * (len(offsets) - 1))
    return RoutingTrace.from_topk(
        np.take_along_axis(ids, order, axis=-1),
        np.take_along_axis(probs, order, axis=-1),
        offsets,
        NUM_EXPERTS,
        splits=tuple("history" if flag else "served" for flag in is_history),
        model=MODEL,
    )


def write_table(
    trace: Annotated[Path | None, typer.Argument(help="decode_traces.npz; default: beside the checkout")] = None,
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "f4_gpt_oss.csv",
    store_capacity: Annotated[int, typer.Option(help="C, maps")] = 1000,
) -> None:
    """Compute Figure 4's real panel and write it as CSV."""
    routing = load_gpt_oss(trace or sample_path())
    table = prediction_table(routing.split("history"), routing.split("served"), list(range(1, 9)), store_capacity)
    save_table(table.assign(model=MODEL, dataset=DATASET), output)
    typer.echo(table[table.distance == 3].to_string(index=False))


if __name__ == "__main__":
    typer.run(write_table)
