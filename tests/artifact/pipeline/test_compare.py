"""Two folders of tables: what is equal, how far apart the rest is, and which claims changed."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.pipeline.compare import changed_verdicts, differences
from finemoe.errors import FinemoeError

TABLE = pd.DataFrame({"model": ["a", "b"], "tpot_s": [2.0, np.nan], "hits": [0, 10]})
CLAIMS = pd.DataFrame({"id": ["T1", "F4"], "verdict": ["holds", "does not hold"]})


@pytest.fixture
def folders(tmp_path):
    for name in ("made", "reference"):
        folder = tmp_path / name
        folder.mkdir()
        for stem in ("same", "near", "text", "longer", "other_measured"):
            TABLE.to_csv(folder / f"{stem}.csv", index=False)
        CLAIMS.to_csv(folder / "claims.csv", index=False)
    return tmp_path / "made", tmp_path / "reference"


def test_every_table_is_judged_by_its_cells(folders):
    made, _ = folders
    TABLE.assign(tpot_s=[2.5, np.nan], hits=[0, 11]).to_csv(made / "near.csv", index=False)
    TABLE.assign(model=["a", "c"]).to_csv(made / "text.csv", index=False)
    pd.concat([TABLE, TABLE]).to_csv(made / "longer.csv", index=False)
    TABLE.assign(hits=7).to_csv(made / "other_measured.csv", index=False)
    found = {one.table: (one.cells, one.equal, one.largest) for one in differences(*folders)}
    assert found == {
        "same.csv": (6, 6, 0.0),
        "near.csv": (6, 4, pytest.approx(0.5 / 2.5)),
        "text.csv": (6, 5, np.inf),
        "longer.csv": (6, 0, np.inf),
    }


def test_a_number_that_is_missing_on_one_side_is_no_small_difference(folders):
    made, _ = folders
    TABLE.assign(tpot_s=[2.0, 3.0]).to_csv(made / "near.csv", index=False)
    assert {one.table: one.largest for one in differences(*folders)}["near.csv"] == np.inf


def test_changed_and_missing_verdicts_are_named(folders):
    made, reference = folders
    assert changed_verdicts(made, reference) == []
    CLAIMS.assign(verdict="holds").iloc[1:].to_csv(made / "claims.csv", index=False)
    assert changed_verdicts(made, reference) == ["T1: missing (reference: holds)", "F4: holds (reference: does not hold)"]


def test_without_a_run_there_is_one_clear_line(folders, tmp_path):
    with pytest.raises(FinemoeError, match="run the pipeline first"):
        differences(tmp_path, folders[1])
    with pytest.raises(FinemoeError, match="no claims"):
        changed_verdicts(tmp_path, folders[1])


@pytest.mark.parametrize("is_changed", [False, True])
def test_the_command_fails_where_a_verdict_changed(folders, is_changed):
    made, reference = folders
    if is_changed:
        CLAIMS.assign(verdict="holds").to_csv(made / "claims.csv", index=False)
    command = [sys.executable, "-m", "finemoe.artifact.pipeline", "compare", str(made), str(reference)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == is_changed
    assert ("F4: holds" if is_changed else "every claim has the reference's verdict") in done.stdout
