"""A run's tables beside those that come with the project: equal to the byte, or how far apart.

On the machine that made the reference a run gives the same bytes. On a processor of another kind PyTorch's kernels round
otherwise, so that recorded routing, and all that follows from it, differs here and there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finemoe.errors import FinemoeError

_MEASURED = "_measured"  # wall-clock times, which no two runs share


@dataclass(frozen=True)
class Difference:
    """One table against its reference.

    Attributes:
        table: name of the CSV. cells: how many it has; equal: how many of them are the same.
        largest: greatest relative difference of two numbers, |a - b| / max(|a|, |b|); infinite where text, rows or columns
            differ.
    """

    table: str
    cells: int
    equal: int
    largest: float


def differences(made: Path, reference: Path) -> list[Difference]:
    """Every table of a folder that the reference has too, but for measured ones and the claims, whose text quotes them.

    Raises:
        FinemoeError: nothing there can be compared.
    """
    names = sorted(path.name for path in reference.glob("*.csv") if not path.stem.endswith(_MEASURED) and path.stem != "claims")
    found = [_difference(name, made / name, reference / name) for name in names if (made / name).is_file()]
    if not found:
        raise FinemoeError(f"{made}: none of the tables in {reference}; run the pipeline first (make reproduce)")
    return found


def changed_verdicts(made: Path, reference: Path) -> list[str]:
    """What became of another verdict, one line for each claim.

    Raises:
        FinemoeError: a folder has no claims.csv.
    """
    ours, theirs = (_verdicts(folder) for folder in (made, reference))
    return [
        f"{id_}: {ours.get(id_, 'missing')} (reference: {verdict})" for id_, verdict in theirs.items() if ours.get(id_) != verdict
    ]


def _verdicts(folder: Path) -> dict[str, str]:
    path = folder / "claims.csv"
    if not path.is_file():
        raise FinemoeError(f"{path}: no claims; run the pipeline first (make reproduce)")
    table = pd.read_csv(path)
    return dict(zip(table.id, table.verdict, strict=True))


def _difference(name: str, made: Path, reference: Path) -> Difference:
    ours, theirs = pd.read_csv(made), pd.read_csv(reference)
    if list(ours) != list(theirs) or len(ours) != len(theirs):
        return Difference(name, theirs.size, 0, np.inf)
    parts = [relative_differences(ours[column], theirs[column]) for column in theirs]
    apart = np.concatenate(parts) if parts else np.zeros(0)
    return Difference(name, apart.size, int((apart == 0).sum()), float(apart.max(initial=0.0)))


def relative_differences(ours: pd.Series, theirs: pd.Series) -> np.ndarray:
    """|a - b| / max(|a|, |b|) of every pair of cells; infinite where texts differ or only one is a number."""
    is_same = ((ours == theirs) | (ours.isna() & theirs.isna())).to_numpy()
    if not (pd.api.types.is_numeric_dtype(ours) and pd.api.types.is_numeric_dtype(theirs)):
        return np.where(is_same, 0.0, np.inf)
    a, b = ours.to_numpy(dtype=float), theirs.to_numpy(dtype=float)
    scale = np.fmax(np.abs(a), np.abs(b))
    apart = np.divide(np.abs(a - b), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.where(is_same, 0.0, np.nan_to_num(apart, nan=np.inf))
