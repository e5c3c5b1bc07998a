"""What commands print: JSON, and tables of names and values."""

import json
from typing import Any

import typer


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    typer.echo(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: a number that does not exist is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """A title, and under it names beside their values."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")  # nothing is cut off in a narrow terminal
    for name, value in rows:
        table.add_row(name, value)
    typer.echo(title)
    Console(markup=False, emoji=False).print(table)
