"""Figure 4 on real routing: the public gpt-oss-20b top-k traces (369 requests, decode only, Apache-2.0).

The trace itself is not part of the project; `python -m finemoe.analysis.gpt_oss TRACE` computes the table that is shipped under
data/reference/, so that the figure shows this panel anywhere. `finemoe.importers.gpt_oss` names the publisher.
"""

from pathlib import Path
from typing import Annotated

import typer

from finemoe.analysis.prediction import prediction_table
from finemoe.importers.gpt_oss import MODEL, load_gpt_oss, sample_path
from finemoe.paths import DATA
from finemoe.plotting import save_table

DATASET = "mixed"


def write_table(
    trace: Annotated[Path | None, typer.Argument(help="what load_gpt_oss reads; default: the sample beside the checkout")] = None,
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
