"""Compare a run's tables with those shipped with the project: equal byte for byte, or by how much they differ.

On the machine that made the reference, a run gives the same bytes. On a different kind of processor, PyTorch's kernels round
differently, so recorded routing and everything derived from it differ in places.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finemoe.errors import FinemoeError

_MEASURED = "_measured"  # wall-clock times, which differ between any two runs


@dataclass(frozen=True)
class Difference:
    """One table against its reference.

    Attributes:
        table: name of the CSV.
        cells: number of cells; equal: number of equal cells.
        largest: largest relative difference of two numbers, |a - b| / max(|a|, |b|); infinite if text, rows or columns differ.
    """

    table: str
    cells: int
    equal: int
    largest: float


def differences(made: Path, reference: Path) -> list[Difference]:
    """Compare every table of a folder that the reference also has, except measured tables and the claims, whose text quotes them.

    Raises:
        FinemoeError: the folder has none of the reference's tables.
    """
    names = sorted(path.name for path in reference.glob("*.csv") if not path.stem.endswith(_MEASURED) and path.stem != "claims")
    found = [_difference(name, made / name, reference / name) for name in names if (made / name).is_file()]
    if not found:
        remedy = "run the pipeline first (make reproduce), or name the folder of another run"
        raise FinemoeError(f"{made}: has none of the reference's tables; {remedy}")
    return found


def changed_verdicts(made: Path, reference: Path) -> list[str]:
    """One line for each claim whose verdict differs from the reference.

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
    """|a - b| / max(|a|, |b|) for every pair of cells; infinite if texts differ or only one of the two is a number."""
    is_same = ((ours == theirs) | (ours.isna() & theirs.isna())).to_numpy()
    if not (pd.api.types.is_numeric_dtype(ours) and pd.api.types.is_numeric_dtype(theirs)):
        return np.where(is_same, 0.0, np.inf)
    a, b = ours.to_numpy(dtype=float), theirs.to_numpy(dtype=float)
    scale = np.fmax(np.abs(a), np.abs(b))
    apart = np.divide(np.abs(a - b), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.where(is_same, 0.0, np.nan_to_num(apart, nan=np.inf))
