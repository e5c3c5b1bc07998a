"""The last cell of a figure's notebook: the table just made, compared with the one shipped with the project."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finemoe.artifact.claims import pipe_table
from finemoe.artifact.pipeline.compare import relative_differences
from finemoe.paths import REFERENCE_FIGURES, ROOT

_SHOWN = 5  # number of cells shown, those that differ most


@dataclass(frozen=True)
class Comparison:
    """The output of the cell: a sentence, and the cells that differ most."""

    text: str
    cells: pd.DataFrame

    def _repr_markdown_(self) -> str:
        if self.cells.empty:
            return self.text
        return f"{self.text}\n\n{pipe_table(self.cells)}"

    def __str__(self) -> str:
        return self.text if self.cells.empty else f"{self.text}\n{self.cells.to_string(index=False)}"


def compare_with_reference(figure: str | Path, reference: Path = REFERENCE_FIGURES) -> Comparison:
    """Compare the table behind a figure with the shipped one.

    Args:
        figure: stem of the figure, as passed to `save_figure`.
        reference: folder with the reference tables.
    """
    made = (ROOT / figure).with_suffix(".csv")
    known = reference / made.relative_to(made.parents[1]) if made.parent.name == "compare_systems" else reference / made.name
    if not known.is_file():
        return Comparison(f"The project ships no reference for `{made.name}`.", pd.DataFrame())
    ours, theirs = pd.read_csv(made), pd.read_csv(known)
    if list(ours) != list(theirs) or len(ours) != len(theirs):
        shapes = f"{len(ours)} rows of {ours.shape[1]} columns here, {len(theirs)} of {theirs.shape[1]} in the reference"
        return Comparison(f"The settings differ from the reference's: {shapes}.", pd.DataFrame())
    return _compared(ours, theirs, made.stem.endswith("_measured"))


def _compared(ours: pd.DataFrame, theirs: pd.DataFrame, is_measured: bool) -> Comparison:
    apart = np.stack([relative_differences(ours[name], theirs[name]) for name in theirs], axis=1)
    equal = int((apart == 0).sum())
    text = f"{equal} of {apart.size} cells equal the reference's"
    if is_measured:
        text += " (wall-clock times differ from run to run)"
    order = np.argsort(-apart, axis=None, kind="stable")[: min(_SHOWN, apart.size - equal)]
    rows = [(int(place // apart.shape[1]), int(place % apart.shape[1])) for place in order]
    cells = pd.DataFrame(
        {
            "row": [row for row, _ in rows],
            "column": [theirs.columns[column] for _, column in rows],
            "yours": [ours.iat[row, column] for row, column in rows],
            "reference": [theirs.iat[row, column] for row, column in rows],
            "relative difference": [apart[row, column] for row, column in rows],
        }
    )
    return Comparison(text + ("." if cells.empty else "; the largest differences:"), cells)
