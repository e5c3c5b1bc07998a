"""Any CSV of routing with a header: one row for each activated expert, or for each token and layer with its K side by side.

Columns are told by their names (`columns.SYNONYMS`), in any order; others are ignored. So are rows' order and lines that begin
with "#". Numbered columns (`expert_0`, `weight_0`, ...) are the K places of one row.
"""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.importers.columns import Roles, block_of, names_experts, roles_of
from finemoe.importers.long_rows import Block, routing_of_rows
from finemoe.importers.opening import Head, delimiter_of, open_text
from finemoe.importers.routing import Options, Routing

NAME = "csv"
_BLOCK_ROWS = 1 << 15


def matches(head: Head) -> bool:
    """Whether the first line names a column of experts, or the file is called a table."""
    return names_experts(head.columns) or (bool(head.columns) and head.path.name.removesuffix(".gz").endswith((".csv", ".tsv")))


def read(path: Path, options: Options) -> Routing:
    """The routing in such a file.

    Raises:
        FinemoeError: a column is missing or a row malformed; rows of data are counted from 1.
    """
    with open_text(path) as file:
        header = next((line for line in file if line.strip() and not line.startswith("#")), "")
        delimiter = delimiter_of(header)
        names = next(csv.reader([header], delimiter=delimiter), [])
        roles = roles_of(names)
        return routing_of_rows(csv_blocks(csv.reader(file, delimiter=delimiter), names, roles), roles.expected)


def csv_blocks(reader: Iterator[list[str]], names: list[str], roles: Roles) -> Iterator[Block]:
    """The rows of a CSV as blocks; empty ones and those that begin with "#" do not count.

    Raises:
        FinemoeError: a row is malformed; names it.
    """
    first_row = 1
    while lines := list(itertools.islice(reader, _BLOCK_ROWS)):
        rows = [row for row in lines if row and row[0][:1] != "#"]
        if set(map(len, rows)) - {len(names)}:
            number, row = next((at, row) for at, row in enumerate(rows, first_row) if len(row) != len(names))
            raise FinemoeError(f"row {number} has {len(row)} values, but there are {len(names)} columns; mend it or leave it out")
        if rows:
            columns = dict(zip(names, zip(*rows, strict=True), strict=True))
            yield block_of(roles, {name: columns[name] for name in roles.names()}, first_row)
        first_row += len(rows)
