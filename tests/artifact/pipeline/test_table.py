"""The table of notebooks and the notebooks themselves agree."""

import pytest

from finemoe.artifact.claims import ARTEFACTS
from finemoe.artifact.pipeline import table
from finemoe.artifact.pipeline.filling import parameter_names
from finemoe.artifact.pipeline.notebooks import known_notebooks, notebook_named
from finemoe.errors import FinemoeError


def test_every_notebook_has_an_entry_and_every_entry_a_notebook():
    assert {entry.notebook for entry in table.read_table().values()} == set(known_notebooks())


def test_every_claim_has_an_entry():
    claimed = [name for name, entry in table.read_table().items() if entry.claim]
    assert ["H" if name == "headline" else name.capitalize() for name in claimed] == list(ARTEFACTS)


@pytest.mark.parametrize("entry", table.read_table().values(), ids=lambda entry: entry.name)
def test_outputs_and_settings_are_parameters(entry):
    names = parameter_names(entry.notebook)
    assert set(entry.outputs) | set(entry.settings) <= set(names)
    assert ("figure" in names) == bool(entry.figure)
    assert {"csv"} - set(entry.outputs) or entry.name == "claims"


def test_jobs_are_told_apart_by_their_wildcards():
    entries = table.read_table()
    assert entries["f4"].job == "f4"
    assert entries["serve_online"].job == "serve_online/{model}"
    assert entries["simulate_testbed"].job == "simulate_testbed/{testbed}/{model}-{dataset}"


def test_a_misspelt_key_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "table.yaml"
    path.write_text("f4: {figur: Fig. 4}\n")
    monkeypatch.setattr(table, "TABLE", path)
    with pytest.raises(FinemoeError, match=r"f4 has an unknown key 'figur'; did you mean 'figure'\?"):
        table.read_table()


def test_a_misspelt_notebook_is_one_line():
    with pytest.raises(FinemoeError, match=r"quickstrat: no such notebook; did you mean 'quickstart'\?"):
        notebook_named("quickstrat")
