"""The notebooks of this project by name: `f4` is `notebooks/figures/f4.ipynb`.

Folders tell the story (tour, stages, figures, studies), and a number in front of a file's name gives the order of reading.
Neither is part of the name, which rules, logs and figures share.
"""

import re
from functools import cache
from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.suggestions import suggestion

NOTEBOOKS = ROOT / "notebooks"
_NUMBER = re.compile(r"^\d+_")


@cache
def known_notebooks() -> dict[str, Path]:
    """Path of every notebook, by name."""
    paths = sorted(NOTEBOOKS.glob("*/*.ipynb"))
    return {_NUMBER.sub("", path.stem): path for path in paths if not path.name.startswith(".")}


def notebook_named(name: str) -> Path:
    """The path of the notebook with this name.

    Raises:
        FinemoeError: there is no such notebook; the message suggests the closest name and lists all.
    """
    known = known_notebooks()
    if name not in known:
        raise FinemoeError(f"{name}: no such notebook; {suggestion(name, known)}")
    return known[name]
