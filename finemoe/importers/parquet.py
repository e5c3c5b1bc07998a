"""Any Parquet table of routing, with the columns of a CSV (`table`); experts and weights may also be lists of K in one column.

Needs pyarrow, which the extra `artifact` installs.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.extras import module_of_extra
from finemoe.importers.columns import Roles, block_of, roles_of
from finemoe.importers.long_rows import Block, routing_of_rows
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options, Routing

NAME = "parquet"
_MAGIC = b"PAR1"
_BLOCK_ROWS = 1 << 16


def matches(head: Head) -> bool:
    """Whether the file is Parquet."""
    return head.start.startswith(_MAGIC)


def read(path: Path, options: Options) -> Routing:
    """Read the routing in such a file.

    Raises:
        FinemoeError: pyarrow is not installed, a column is missing, or a row is malformed; rows are counted from 1.
    """
    arrow, parquet = (module_of_extra(name, "reading Parquet") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        table = parquet.ParquetFile(path)
        roles = roles_of(table.schema_arrow.names)
        return routing_of_rows(_blocks(arrow, table, roles), roles.expected)
    except arrow.ArrowException as error:
        raise FinemoeError(f"damaged, or not a Parquet file ({str(error).splitlines()[0]}); create it again") from error


def _blocks(arrow: Any, table: Any, roles: Roles) -> Iterator[Block]:
    first_row = 1
    for batch in table.iter_batches(_BLOCK_ROWS, columns=list(roles.names())):
        columns: dict[str, Any] = {}
        wide = roles
        for name in roles.names():
            column = batch.column(name)
            if arrow.types.is_list(column.type) or arrow.types.is_large_list(column.type):
                columns |= _of_lists(name, column, first_row)
                wide = _with(wide, name, [key for key in columns if key.startswith(f"{name}[")])
            else:
                columns[name] = _values(name, column, first_row)
        if len(batch):
            yield block_of(wide, columns, first_row)
        first_row += len(batch)


def _values(name: str, column: Any, first_row: int) -> Any:
    if column.null_count:
        row = first_row + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise FinemoeError(f"row {row}: {name} is empty")
    values = column.to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype == object else values


def _of_lists(name: str, column: Any, first_row: int) -> dict[str, np.ndarray]:
    """Split a column of lists into K columns."""
    lengths = np.diff(column.offsets.to_numpy())
    if column.null_count or (len(lengths) and (lengths != lengths[0]).any()):
        row = first_row + int(np.argmax(lengths != lengths[0]))
        raise FinemoeError(f"row {row}: {name} has another number of entries than row {first_row}; every row needs K")
    width = int(lengths[0]) if len(lengths) else 0
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, max(1, width))
    return {f"{name}[{place}]": values[:, place] for place in range(width)}


def _with(roles: Roles, name: str, places: list[str]) -> Roles:
    """The roles with K columns in place of one column of lists."""
    return replace(roles, experts=tuple(places)) if name in roles.experts else replace(roles, weights=tuple(places))
