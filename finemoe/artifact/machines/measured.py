"""One machine's tables, from its folder in `data/measured`, which the figures read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from finemoe.artifact.machines.rows import read_table
from finemoe.artifact.machines.schema import TABLES
from finemoe.errors import FinemoeError
from finemoe.paths import DATA

MEASURED = DATA / "measured"  # one folder for each machine
NOT_YET = "not yet measured on a GPU"  # shown in figures and pages until there is a measurement


@dataclass(frozen=True)
class Measured:
    """One machine's tables.

    folder: folder of the tables.
    facts: the machine's facts.
    tables: by name, with the dataclasses of `machines.schema` as schema.
    """

    folder: Path
    facts: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    @property
    def title(self) -> str:
        return str(self.facts["title"])

    @property
    def is_gpu(self) -> bool:
        return bool(self.facts["devices"])

    @property
    def memory_bytes(self) -> float:
        """Memory of the first device, or of the host if there is no device."""
        devices = self.facts["devices"]
        return float(devices[0]["memory_bytes"] if devices else self.facts["host_memory_bytes"])

    @classmethod
    def load(cls, folder: Path) -> "Measured":
        """Load a machine's folder.

        Raises:
            FinemoeError: nothing was measured there, or a table is missing or does not match the schema.
        """
        path = folder / "machine.json"
        if not path.is_file():
            raise FinemoeError(
                f"{folder}: no machine was measured there; run `python -m finemoe.artifact.gpu_bench --out {folder}`"
            )
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FinemoeError(
                f"{path}: damaged ({error}); take it from the archive again, or measure in another folder"
            ) from error
        return cls(folder, facts, {name: read_table(name, folder) for name in TABLES})


def gpus_first(machines: list[Measured]) -> list[Measured]:
    """Machines with a GPU first, otherwise in the given order."""
    return sorted(machines, key=lambda one: not one.is_gpu)


def machines_in(folder: Path = MEASURED) -> list[Measured]:
    """Every machine with tables in a subfolder, those with a GPU first."""
    found = (path.parent for path in sorted(folder.glob("*/machine.json")) if not path.parent.name.startswith("."))
    return gpus_first([Measured.load(path) for path in found])
