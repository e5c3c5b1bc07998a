"""The kinds of routing that a claim is tested on, the miniatures' and a real model's, and tables whose index has several keys."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

REAL = "gpt-oss-20b"


def panel_of(table: pd.DataFrame) -> str:
    """Which routing a claim was tested on, in words."""
    is_there = (table.model == REAL).any()
    return "gpt-oss-20b (real routing) where testable, and miniatures, separately" if is_there else "miniatures only"


def panels_of(gains: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of the miniatures and of real routing, each with its name; a kind without rows is left out."""
    real = gains.model == REAL
    return [(name, part) for name, part in (("miniatures", gains[~real]), ("gpt-oss-20b", gains[real])) if len(part)]


def entries_of(table: "pd.DataFrame | pd.Series[Any]") -> Iterator[tuple[Any, Any]]:
    """(key, row or value) of a table with several keys."""
    return zip(table.index, table if isinstance(table, pd.Series) else table.itertuples(), strict=True)
