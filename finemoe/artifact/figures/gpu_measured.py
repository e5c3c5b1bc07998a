"""What machines measured, as tables and words (notebooks/studies/gpu_measured.ipynb); the picture is `machines.figure`."""

from collections.abc import Sequence

import pandas as pd

from finemoe.artifact.machines.aims import targets_table
from finemoe.artifact.machines.cells import cells_table, foretold_table
from finemoe.artifact.machines.measured import NOT_YET, Measured, gpus_first
from finemoe.paths import ROOT

_CELL = ["machine", "model", "policy", "expert_memory"]
_SHOWN = ["num_requests", "ttft_s", "tpot_s", "hit_rate", "link_use", "host_stall_s", "predicted_tpot_s", "error", "limit_tpot_s"]


def load_machines(folders: Sequence[str]) -> list[Measured]:
    """Machines by folder, those with a GPU first; relative paths start at the repository root."""
    return gpus_first([Measured.load(ROOT / folder) for folder in folders])


def in_words(machines: Sequence[Measured]) -> str:
    """A line for each machine, and a note where none has a GPU."""
    lines = [
        f"{one.folder.name}: {one.title}, torch {one.facts['torch']}, transformers {one.facts['transformers']}"
        for one in machines
    ]
    return "\n".join(lines if any(one.is_gpu for one in machines) else [*lines, NOT_YET])


def every_cell(machines: Sequence[Measured]) -> pd.DataFrame:
    """Measured and predicted numbers by machine, model, policy and expert memory."""
    tables = [cells_table(one).assign(machine=one.title) for one in machines]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*_CELL, *_SHOWN])
    return table.set_index(_CELL)[_SHOWN].round(4)


def foretold_cells(machines: Sequence[Measured], cards: pd.DataFrame) -> pd.DataFrame:
    """Predictions made beforehand with their errors on each GPU; without a GPU the predictions alone.

    Args:
        cards: as from `machines.foretold.read_all_foretold`.
    """
    compared = [foretold_table(one).assign(machine=one.title) for one in machines if one.is_gpu]
    if compared:
        return pd.concat(compared).set_index(_CELL).round(3)
    values = ["tpot_s", "hit_rate", "link_use"]
    return cards.pivot_table(index=["card", "model", "policy"], columns="expert_memory", values=values, sort=False).round(4)


def judged_targets(machines: Sequence[Measured]) -> pd.DataFrame:
    """Targets, what each GPU reached, and the verdicts."""
    judged = [targets_table(one).assign(machine=one.title) for one in machines if one.is_gpu]
    return pd.concat(judged, ignore_index=True) if judged else pd.DataFrame({"target": ["all"], "verdict": [NOT_YET]})


def errors_on_gpus(machines: Sequence[Measured]) -> pd.DataFrame:
    """Relative error of the TPOT predicted after micro-measurements, by expert memory; one row with a note without a GPU."""
    compared = [one.tables["predictions"].assign(machine=one.title) for one in machines if one.is_gpu]
    if not compared:
        return pd.DataFrame({"machine": [NOT_YET]})
    index = ["machine", "model", "policy"]
    return pd.concat(compared).pivot_table(index=index, columns="expert_memory", values="error", sort=False)
