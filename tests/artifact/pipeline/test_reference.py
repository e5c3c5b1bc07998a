"""The last cell of a figure's notebook, on tables made up for it."""

import pandas as pd

from finemoe.artifact.pipeline.reference import compare_with_reference


def tables(folder, ours: pd.DataFrame, theirs: pd.DataFrame, name="f4"):
    (folder / "figures").mkdir()
    (folder / "reference").mkdir()
    ours.to_csv(folder / "figures" / f"{name}.csv", index=False)
    theirs.to_csv(folder / "reference" / f"{name}.csv", index=False)
    return compare_with_reference(folder / "figures" / name, folder / "reference")


def test_equal_tables_need_one_sentence(tmp_path):
    table = pd.DataFrame({"system": ["a", "b"], "ms": [1.0, 2.0]})
    assert str(tables(tmp_path, table, table)) == "4 of 4 cells equal the reference's."


def test_the_largest_differences_come_first(tmp_path):
    theirs = pd.DataFrame({"system": ["a", "b", "c"], "ms": [1.0, 2.0, 4.0]})
    found = tables(tmp_path, theirs.assign(ms=[1.0, 2.2, 5.0]), theirs)
    assert found.text == "4 of 6 cells equal the reference's; the largest differences:"
    assert found.cells[["row", "column", "yours", "reference"]].values.tolist() == [[2, "ms", 5.0, 4.0], [1, "ms", 2.2, 2.0]]
    assert found.cells["relative difference"].round(4).tolist() == [0.2, 0.0909]
    assert "| row | column | yours | reference | relative difference |" in found._repr_markdown_()


def test_other_settings_are_not_compared_cell_by_cell(tmp_path):
    table = pd.DataFrame({"ms": [1.0, 2.0]})
    found = tables(tmp_path, table[:1], table)
    assert str(found) == "The settings differ from the reference's: 1 rows of 1 columns here, 2 of 1 in the reference."


def test_times_are_announced_as_such_and_a_missing_reference_too(tmp_path):
    table = pd.DataFrame({"ms": [1.0]})
    found = tables(tmp_path, table, table, "f17_measured")
    assert found.text == "1 of 1 cells equal the reference's (wall-clock times differ from run to run)."
    (tmp_path / "reference" / "f17_measured.csv").unlink()
    missing = compare_with_reference(tmp_path / "figures" / "f17_measured", tmp_path / "reference")
    assert str(missing) == "The project ships no reference for `f17_measured.csv`."
