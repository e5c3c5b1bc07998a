"""Any CSV of routing with a header: one row per activated expert, or per token and layer with its K experts side by side.

Columns are recognised by name (`columns.SYNONYMS`), in any order; others are ignored. The order of rows does not matter, and
lines that start with "#" are skipped. Numbered columns (`expert_0`, `weight_0`, ...) are the K places of one row.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from finemoe.errors import FinemoeError
from finemoe.importers.columns import Roles, block_of, names_experts, roles_of
from finemoe.importers.long_rows import Block, routing_of_rows
from finemoe.importers.opening import Head, delimiter_of, open_text
from finemoe.importers.routing import Options, Routing

NAME = "csv"
_BLOCK_BYTES = 1 << 20
_WITHOUT_LINE_ENDS = str.maketrans("", "", "\r\n")


def matches(head: Head) -> bool:
    """Whether the first line names a column of experts, or the file has a table's suffix."""
    return names_experts(head.columns) or (bool(head.columns) and head.path.name.removesuffix(".gz").endswith((".csv", ".tsv")))


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file.

    Raises:
        FinemoeError: a column is missing or a row is malformed; data rows are counted from 1.
    """
    with open_text(path) as file:
        header = next((line for line in file if line.strip() and not line.startswith("#")), "")
        delimiter = delimiter_of(header)
        names = next(csv.reader([header], delimiter=delimiter), [])
        roles = roles_of(names)
        return routing_of_rows(csv_blocks(file, names, roles, delimiter), roles.expected)


def csv_blocks(file: TextIO, names: list[str], roles: Roles, delimiter: str = ",") -> Iterator[Block]:
    """The rows of a CSV as blocks; empty rows and those that start with "#" are skipped and not counted.

    Raises:
        FinemoeError: a row is malformed; names it.
    """
    first_row = 1
    while lines := file.readlines(_BLOCK_BYTES):
        rows = [line for line in lines if line[0] != "#" and not line.isspace()]
        if rows:
            columns = _columns(rows, len(names), delimiter, first_row)
            named = dict(zip(names, columns, strict=True))
            yield block_of(roles, {name: named[name] for name in roles.names()}, first_row)
        first_row += len(rows)


def _columns(rows: list[str], num_columns: int, delimiter: str, first_row: int) -> list[list[str]]:
    """Each column's strings. Rows without quotes are split all at once, in a quarter of the time that `csv` takes."""
    text = delimiter.join(rows)
    if '"' in text:
        cells = list(csv.reader(rows, delimiter=delimiter))
        counts = [len(row) for row in cells]
    else:
        counts = [row.count(delimiter) + 1 for row in rows]
    if set(counts) != {num_columns}:
        row, count = next((at, count) for at, count in enumerate(counts, first_row) if count != num_columns)
        raise FinemoeError(f"row {row} has {count} values, but there are {num_columns} columns; correct it or leave it out")
    if '"' in text:
        return [list(column) for column in zip(*cells, strict=True)]
    flat = text.translate(_WITHOUT_LINE_ENDS).split(delimiter)
    return [flat[place::num_columns] for place in range(num_columns)]
