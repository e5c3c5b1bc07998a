"""The sizes of published models as one table: `python -m finemoe.artifact.pipeline.geometries CONFIG ... --output CSV`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from finemoe.files import atomic_path
from finemoe.models.geometry import Geometry


def write_table(
    configs: Annotated[list[Path], typer.Argument(help="config.json files")],
    output: Annotated[Path, typer.Option(help="the CSV to write")],
) -> None:
    """Write the geometry of every configuration as one CSV, a row each, named after its file."""
    rows = [{"model": path.stem, **asdict(Geometry.from_config(path))} for path in configs]
    with atomic_path(output) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == "__main__":
    typer.run(write_table)
