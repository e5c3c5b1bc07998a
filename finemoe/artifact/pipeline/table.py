"""The table of the pipeline's notebooks (notebooks/table.yaml): the inputs, outputs and settings of each notebook."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

from finemoe.artifact.pipeline.notebooks import NOTEBOOKS
from finemoe.errors import FinemoeError
from finemoe.suggestions import suggestion

TABLE = NOTEBOOKS / "table.yaml"


@dataclass(frozen=True)
class Entry:
    """One notebook of the pipeline; the header of notebooks/table.yaml explains every field.

    Attributes:
        name: name of the rule.
        notebook: name of the notebook; by default the name of the rule.
        figure: title of the figure in the report, "" if the notebook draws none; stem: its file in the folder of figures.
        inputs, outputs: paths by name; names in braces are filled in later.
    """

    name: str
    notebook: str
    figure: str = ""
    stem: str = ""
    claim: bool = False
    each: tuple[str, ...] = ()
    alone: bool = False
    executed: bool = False
    own: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str | list[str]] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """A path with wildcards that identifies this rule's jobs: `f4`, `profile_models/{model}-{dataset}`."""
        folder = [self.name] if self.each else []
        folder += ["{testbed}"] if "testbed" in self.each else []
        rest = "-".join(f"{{{name}}}" for name in self.each if name != "testbed")
        return "/".join([*folder, rest or self.name])


def read_table() -> dict[str, Entry]:
    """Every entry by name, in the order of the file.

    Raises:
        FinemoeError: an entry has an unknown key.
    """
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: _entry(name, keys) for name, keys in content.items() if not name.startswith(".")}


def _entry(name: str, keys: Mapping[str, Any]) -> Entry:
    known = {one.name for one in fields(Entry)} - {"name"}
    if unknown := sorted(set(keys) - known):
        raise FinemoeError(f"{TABLE.name}: {name} has an unknown key {unknown[0]!r}; {suggestion(unknown[0], sorted(known))}")
    defaults = {"notebook": name, "stem": name}
    return Entry(name=name, **{**defaults, **keys, "each": tuple(keys.get("each", ()))})
