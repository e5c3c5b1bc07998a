"""Predictions for cards, made before any measurement on them."""

from dataclasses import fields
from pathlib import Path

import pandas as pd

from finemoe.artifact.machines.measured import MEASURED, Measured
from finemoe.artifact.machines.rows import read_rows, write_rows
from finemoe.artifact.machines.schema import Foretold


def write_foretold(rows: list[Foretold], card: str, folder: Path) -> None:
    """Write a card's predictions to the place where `read_foretold` looks for them."""
    write_rows(rows, Foretold, foretold_path(card, folder))


def foretold_path(card: str, folder: Path) -> Path:
    """Path of a card's predictions."""
    return folder / f"predictions-before-{Path(card).stem}.csv"


def read_foretold(machine: "Measured") -> pd.DataFrame:
    """Predictions for a machine's card, which its name identifies, from next to its folder or from the shipped ones; empty if
    there are none."""
    for path in (*_foretold_in(machine.folder.parent), *_foretold_in(MEASURED)):
        if path.stem.rpartition("-")[2] in machine.title.lower().replace("-", " ").split():
            return read_rows(path, Foretold)
    return pd.DataFrame(columns=[field.name for field in fields(Foretold)])


def read_all_foretold(folder: Path) -> pd.DataFrame:
    """Predictions for all cards, by card."""
    nothing = pd.DataFrame(columns=[field.name for field in fields(Foretold)])
    found = [read_rows(path, Foretold) for path in _foretold_in(folder)]
    return pd.concat(found, ignore_index=True) if found else nothing


def _foretold_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("predictions-before-*.csv"))
