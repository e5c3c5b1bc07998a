"""`python -m finemoe.artifact.pipeline`: the pipeline's own commands, called by the Snakefile and usable by hand."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from finemoe.artifact.pipeline.config import check, load
from finemoe.artifact.pipeline.costs import costs_written
from finemoe.artifact.pipeline.notebook import of_files, run_notebook
from finemoe.artifact.pipeline.notebooks import notebook_named
from finemoe.artifact.pipeline.warm_parent import WarmParent
from finemoe.errors import FinemoeError
from finemoe.paths import REFERENCE_FIGURES

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def notebook(
    name: Annotated[str, typer.Argument(help="Name in notebooks/, e.g. f4, or a path to a notebook.")],
    output: Annotated[Path, typer.Option(help="Where the executed notebook goes.")],
    parameters_json: Annotated[str, typer.Option(help="Parameters as one JSON object.")] = "{}",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="One parameter, k=v, repeatable.")] = None,
    log: Annotated[Path | None, typer.Option(help="Text file for what the cells print.")] = None,
    costs: Annotated[Path | None, typer.Option(help="Table for the time and memory it took.")] = None,
) -> None:
    """Run a notebook with parameters and keep the executed copy."""
    with _one_line_errors():
        path = Path(name) if name.endswith(".ipynb") else notebook_named(name)
        values = json.loads(parameters_json) | _pairs(parameter or [])
        warm = WarmParent.of_this_run()
        if warm is not None:
            warm.run_notebook(path, output, values, log, costs)
            return
        with costs_written(costs):
            run_notebook(path, output, values, log)


@app.command()
def config(
    files: Annotated[list[Path], typer.Argument(help="Configuration files, later ones on top.")],
) -> None:
    """Check configuration files and print what the pipeline would use."""
    with _one_line_errors():
        merged = load(*files)
        check(merged)
    typer.echo(yaml.safe_dump(merged, sort_keys=False), nl=False)


@app.command()
def compare(
    made: Annotated[Path, typer.Argument(help="Folder with a run's figures.")] = Path("figures"),
    reference: Annotated[Path, typer.Argument(help="Folder to compare with.")] = REFERENCE_FIGURES,
) -> None:
    """Compare a run's tables with those shipped with the project; fails if the verdict of a claim differs."""
    from rich.console import Console
    from rich.table import Table

    from finemoe.artifact.pipeline.compare import changed_verdicts, differences

    with _one_line_errors():
        found, changed = differences(made, reference), changed_verdicts(made, reference)
    table = Table("table", "cells", "equal", "largest relative difference")
    for one in found:
        table.add_row(one.table, str(one.cells), f"{one.equal / max(one.cells, 1):.1%}", _far(one.largest))
    Console().print(table)
    if any(math.isinf(one.largest) for one in found):
        typer.echo(
            "Tables with other rows or texts come from other settings; their verdicts need not agree with the reference's."
        )
    typer.echo("\n".join(changed) or "every claim has the reference's verdict")
    raise typer.Exit(1 if changed else 0)


def _far(difference: float) -> str:
    if math.isinf(difference):
        return "other text, rows or columns"
    return f"{difference:.1e}" if difference else "none"


def _pairs(texts: list[str]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals:
            raise FinemoeError(f"{name!r} is not of the form k=v; for example: -p seed=1")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


class _one_line_errors:
    """A user's mistake ends in one line, not in a traceback."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FinemoeError):
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from None
        if isinstance(error, OSError):
            typer.echo(f"Error: {of_files(error)}", err=True)
            raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
