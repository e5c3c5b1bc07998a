"""Advice as plain values and back: the output of `finemoe advise --json`, and the tables behind the figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from finemoe.advice.result import Advice

# Numbers that may be missing: NaN in Python, null in JSON.
_NUMBERS = frozenset(
    (
        *("low", "high", "recall", "ratio", "hit_rate", "recall_at_k", "tpot_s", "ttft_s", "tokens_per_s", "stalled"),
        *("on_demand_s", "prefetching_s"),
    )
)


def advice_of(values: Mapping[str, Any]) -> Advice:
    """Advice from the values of `Advice.to_dict`, including values that passed through JSON, which has no NaN."""
    return Advice(**{name: _with_nan(value) for name, value in values.items()})


def _with_nan(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nan(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nan(item) for item in value]
    return float("nan") if value is None and name in _NUMBERS else value


def rows_of(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def column(rows: Sequence[Mapping[str, Any]], name: str, times: float = 1.0) -> list[float]:
    """One number of every row."""
    return [times * row[name] for row in rows]


def has_interval(row: Mapping[str, Any]) -> bool:
    """Whether a row has a 95 % interval."""
    return bool(row["low"] == row["low"] and row["high"] == row["high"])


def names_in(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """The distinct values of a column, in order of appearance."""
    return list(dict.fromkeys(row[name] for row in rows))
