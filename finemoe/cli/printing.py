"""Prints JSON and tables."""

import json
from collections.abc import Sequence
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
    """A title, then names with their values."""
    from rich.table import Table

    table = Table(show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")  # nothing is cut off in a narrow terminal
    for name, value in rows:
        table.add_row(name, value)
    typer.echo(title)
    print_rich(table)


def wide_table(title: str | None, name: str, columns: Sequence[str]) -> Any:
    """A table with a column of names and right-aligned columns of numbers, compact enough for 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    style = {"title_justify": "left", "title_style": "", "padding": (0, 0, 0, 1), "show_edge": False}
    table = Table(title=title, box=SIMPLE_HEAD, **style)  # type: ignore[arg-type]
    table.add_column(name, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_rich(table: Any) -> None:
    """A table of Rich, its texts taken literally."""
    from rich.console import Console

    Console(markup=False, emoji=False).print(table)


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 -> "1 request"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"
