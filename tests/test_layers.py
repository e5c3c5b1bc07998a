"""What may import what, as pyproject.toml says and docs/design.md draws it."""

import tomllib

from importlinter.cli import lint_imports

from finemoe.paths import ROOT

LAYERS, NEEDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_no_import_breaks_the_contracts(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_every_module_of_the_library_is_held_to_what_it_may_need():
    """The layers name every module, which the linter sees to itself; the list beside them is the same but for the artefact."""
    in_layers = {name.strip() for layer in LAYERS["layers"] for name in layer.split("|")}
    assert LAYERS["exhaustive"]
    assert {f"finemoe.{name}" for name in in_layers - {"artifact"}} == set(NEEDS["source_modules"])
