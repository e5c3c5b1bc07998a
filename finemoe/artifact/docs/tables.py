"""Shipped tables as the documentation's numbers read them, and how each kind of number is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from finemoe.errors import FinemoeError
from finemoe.paths import DATA


@dataclass(frozen=True)
class Number:
    """One number of the documentation.

    Attributes:
        name: in `<!--n:NAME-->`. text: as a page shows it, with its unit. source: the table below data/. meaning: what it is.
    """

    name: str
    text: str
    source: str
    meaning: str


@cache
def shipped(path: str) -> pd.DataFrame:
    """A shipped table by its path below data/; callers must not change it."""
    return pd.read_csv(DATA / path)


def rows(table: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples."""
    return iter(table.itertuples(index=False))


def groups(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The rows of each value, or of each tuple of values, in order of appearance."""
    return iter(table.groupby(columns[0] if len(columns) == 1 else list(columns), sort=False))


def items(values: "pd.Series[float]") -> Iterator[tuple[Any, float]]:
    """A series' keys and values."""
    return ((key, float(value)) for key, value in values.items())


def only(table: pd.DataFrame, column: str, **where: object) -> float:
    """The one value of a column in the rows where other columns have these values.

    Raises:
        FinemoeError: there is no such row, or several with different values.
    """
    for name, value in where.items():
        table = table[table[name] == value]
    values = table[column].unique()
    if len(values) != 1:
        raise FinemoeError(f"{column} where {where}: {len(values)} values, expected one")
    return float(values[0])


def slug(text: str) -> str:
    """A name's part: lower case, words joined by underscores; miniatures lose their suffix."""
    plain = "".join(letter if letter.isalnum() else " " for letter in text.lower().removesuffix("-mini"))
    return "_".join(plain.split())


def milliseconds(seconds: float) -> str:
    """As in "47 ms"; three digits below 10."""
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def percent(share: float, digits: int = 0) -> str:
    """As in "61 %"; no negative zero."""
    return f"{round(100 * share, digits) + 0.0:.{digits}f} %"


def signed_percent(share: float) -> str:
    """As in "+31 %", with a minus sign that does not break."""
    return f"{100 * share:+.0f} %".replace("-", "−")


def spread_of(values: "pd.Series[float]", unit: str, digits: int = 0) -> str:
    """As in "25 to 44 µs"; one number where both ends read the same."""
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
