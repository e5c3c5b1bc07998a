"""Tables as files: rows of one kind, written and checked against the schema."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from finemoe.artifact.machines.schema import TABLES
from finemoe.artifact.plotting import save_table
from finemoe.errors import FinemoeError


def write_table(rows: list[Any], name: str, folder: Path) -> None:
    """Write rows of one kind as `folder`/`name`.csv; an empty table still has its columns."""
    write_rows(rows, TABLES[name], folder / f"{name}.csv")


def write_rows(rows: list[Any], kind: type, path: Path) -> None:
    save_table(pd.DataFrame([vars(row) for row in rows], columns=[field.name for field in fields(kind)]), path)


def read_table(name: str, folder: Path) -> pd.DataFrame:
    """Read a table that `write_table` wrote.

    Raises:
        FinemoeError: it is missing, or its columns do not match the schema.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise FinemoeError(f"{path}: not measured; run `python -m finemoe.artifact.gpu_bench --out {folder}`")
    return read_rows(path, TABLES[name])


def read_rows(path: Path, kind: type) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
    except (OSError, ValueError) as error:
        raise FinemoeError(
            f"{path}: not a table ({error}); take it from the archive again, or measure in another folder"
        ) from error
    expected = get_type_hints(kind)
    if list(table.columns) != list(expected):
        raise FinemoeError(f"{path}: has the columns {', '.join(table.columns)}; expected {', '.join(expected)}")
    for column, sort in expected.items():
        if not _is_of(table[column], sort):
            raise FinemoeError(f"{path}: column {column} contains values that are not of type {sort.__name__}")
    return table


def _is_of(column: pd.Series, kind: type) -> bool:
    checks = {
        int: pd.api.types.is_integer_dtype,
        float: pd.api.types.is_numeric_dtype,
        bool: pd.api.types.is_bool_dtype,
        str: lambda values: all(isinstance(value, str) for value in values),
    }
    return len(column) == 0 or bool(checks[kind](column))
