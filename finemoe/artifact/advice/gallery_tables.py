"""Advice on several traces and machines as tidy tables: written to files, and read back as the same advice, to six digits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from finemoe.advice.result import Advice
from finemoe.artifact.advice.tables import advice_of
from finemoe.artifact.plotting import save_table
from finemoe.errors import FinemoeError
from finemoe.files import write_text

Key = tuple[str, str]  # trace and testbed
_OF_TRACES = ("hit_rates", "working_set", "reuse", "concentration")  # the same on every machine
_OF_MACHINES = ("times", "prefetching", "predictability", "sensitivity")
_FACTS = (
    *("trace", "request", "cliff", "knee", "machine", "recommendation", "limits"),
    *("left_out", "notes", "warnings"),
)


def write_advice(found: Mapping[Key, Advice], folder: Path) -> None:
    """Write advice to CSV tables with the columns trace and testbed; all other values go to facts.json."""
    for name in (*_OF_TRACES, *_OF_MACHINES):
        save_table(pd.concat(_parts(found, name), ignore_index=True), folder / f"{name}.csv")
    facts: dict[str, dict[str, Any]] = {}
    for (trace, testbed), advice in found.items():
        facts.setdefault(trace, {})[testbed] = {name: _rounded(getattr(advice, name)) for name in _FACTS}
    write_text(folder / "facts.json", json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_advice(folder: Path) -> dict[Key, Advice]:
    """Read what `write_advice` wrote, in the same order.

    Raises:
        FinemoeError: a table is missing.
    """
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in (*_OF_TRACES, *_OF_MACHINES)}
    except FileNotFoundError as error:
        raise FinemoeError(f"{error.filename}: no such table; `python -m finemoe.artifact.advice.gallery` makes it") from error
    return {
        (trace, testbed): advice_of(of_machine | {name: _rows(table, trace, testbed) for name, table in tables.items()})
        for trace, machines in facts.items()
        for testbed, of_machine in machines.items()
    }


def _parts(found: Mapping[Key, Advice], name: str) -> list[pd.DataFrame]:
    return list(_labelled(found, name))


def _labelled(found: Mapping[Key, Advice], name: str) -> Iterator[pd.DataFrame]:
    """The rows of each advice with their labels; once per trace if they do not depend on the machine."""
    written: set[str] = set()
    for (trace, testbed), advice in found.items():
        if name in _OF_TRACES and trace in written:
            continue
        written.add(trace)
        of = {"trace": trace} if name in _OF_TRACES else {"trace": trace, "testbed": testbed}
        yield pd.DataFrame([of | row for row in getattr(advice, name)])


def _rows(table: pd.DataFrame, trace: str, testbed: str) -> list[dict[str, Any]]:
    here = table[table.trace == trace]
    if "testbed" in here:
        here = here[here.testbed == testbed]
    rows = here.drop(columns=["trace", "testbed"], errors="ignore").to_dict("records")
    return [{str(name): _distance(name, value) for name, value in row.items()} for row in rows]


def _distance(name: Any, value: Any) -> Any:
    """Distances as integers or None; pandas turns them into floats with NaN."""
    if name != "distance":
        return value
    return None if pd.isna(value) else int(value)


def _rounded(value: Any) -> Any:
    """Round to six digits, as in the tables, and replace NaN by null, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return None if value != value else float(f"{value:.6g}")
    return value
