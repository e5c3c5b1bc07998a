"""How the Snakefile fills in the table of notebooks: names in braces become paths, and notebooks get their parameters by name."""

import ast
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from finemoe.artifact.pipeline.notebooks import notebook_named
from finemoe.artifact.pipeline.table import Entry
from finemoe.paths import ROOT

_NAME = re.compile(r"{([A-Za-z_]+)}")


class Filling:
    """Values of a configuration for the names in the table.

    Args:
        config: the pipeline's configuration.
        folders: the folders named results, figures and miniatures.
        lists: the value of each upper-case name, a text or a list.
        made: tables that a rule computes, by the path of the shipped table that they replace.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folders: Mapping[str, str],
        lists: Mapping[str, str | Sequence[str]],
        made: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._folders, self._made = config, folders, made or {}
        self._lists = {name: [value] if isinstance(value, str) else list(value) for name, value in lists.items()}
        self._plural = {name for name, value in lists.items() if not isinstance(value, str)}

    def paths(self, pattern: str | Sequence[str]) -> str | list[str]:
        """The path of a pattern, or all its paths if it stands for several; wildcards are kept.

        A pattern with an asterisk is matched against existing files. Hidden files, which some file systems create, are left out.
        """
        if isinstance(pattern, str):
            found = self._expanded(pattern)
            return found if self._is_plural(pattern) else found[0]
        return [path for one in pattern for path in self._expanded(one)]

    def outputs(self, entry: Entry) -> dict[str, str]:
        """The files that an entry's notebook makes, by name; wildcards are kept."""
        figure = f"{self._folders['figures']}/{entry.stem}"
        found = {name: f"{figure}.{name}" for name in ("pdf", "png", "csv")} if entry.figure else {}
        if entry.claim:
            found["claims"] = f"{self._folders['results']}/claims/{entry.name}.json"
        if entry.executed:
            found["executed"] = f"{self._folders['results']}/notebooks/{entry.job}.ipynb"
        return found | {name: self._expanded(pattern)[0] for name, pattern in entry.outputs.items()}

    def parameters(
        self, entry: Entry, wildcards: Mapping[str, str], inputs: Mapping[str, Any], outputs: Mapping[str, str]
    ) -> dict[str, Any]:
        """Values of the notebook's parameters, by name: from files first, then from wildcards, then from the configuration."""
        found: dict[str, Any] = {}
        derived = self._derived(entry, wildcards)
        for name, default in parameter_defaults(entry.notebook).items():
            if name in outputs:
                found[name] = outputs[name]
            elif name in inputs and name in entry.inputs:
                found[name] = inputs[name] if isinstance(inputs[name], str) else list(inputs[name])
            elif name in entry.settings:
                found[name] = self._config[entry.settings[name]]
            elif name in derived:
                found[name] = derived[name]()
            elif name in self._config and not entry.own:
                found[name] = self._config[name]
            elif str(default) in self._made:
                found[name] = self._made[str(default)]
        return found

    def dataset_source(self, name: str) -> dict[str, str]:
        """Where a dataset's prompts come from: the embedded set of that name, or the entry in `dataset_sources`."""
        return {"dataset": name, "column": "prompt"} | self._config["dataset_sources"].get(name, {})

    def dataset_files(self, name: str) -> list[str]:
        """The local file behind a dataset, so that editing the file reruns the jobs that used it; empty for a hub id.

        External data need not be here yet: another rule fetches them.
        """
        source = self.dataset_source(name)["dataset"]
        fetched = f"{self._config['external']}/"
        return [path for path in (f"data/prompts/{source}.jsonl", source) if (ROOT / path).is_file() or path.startswith(fetched)]

    def _derived(self, entry: Entry, wildcards: Mapping[str, str]) -> dict[str, Callable[[], Any]]:
        config, models = self._config, self._config["models"]
        model = wildcards.get("model", models[0])
        folder = self._folders["miniatures"]
        distances = config["prefetch_distance"]
        source = self.dataset_source(wildcards.get("dataset", config["datasets"][0]))
        testbed = wildcards.get("testbed", config["testbed"])
        per_model = len(config["datasets"]) if "{DATASETS}" in str(entry.inputs.get("traces", "")) else 1
        return {
            "model": lambda: f"{folder}/{model}",
            "models": lambda: [f"{folder}/{one}" for one in models],
            "dataset": lambda: source["dataset"],
            "column": lambda: source["column"],
            "prefetch_distance": lambda: distances[model],
            "prefetch_distances": lambda: [distances[one] for one in models for _ in range(per_model)],
            "machines": lambda: list(self._lists["MACHINES"]),
            "testbed": lambda: testbed,
            "cache_limits_gb": lambda: config["cache_limits_gb"] if testbed == config["testbed"] else [],
        }

    def _is_plural(self, pattern: str) -> bool:
        return "*" in pattern or not self._plural.isdisjoint(_NAME.findall(pattern))

    def _expanded(self, pattern: str) -> list[str]:
        for name, value in self._folders.items():
            pattern = pattern.replace(f"{{{name}}}", value)
        names = [name for name in dict.fromkeys(_NAME.findall(pattern)) if name.isupper()]
        chosen = itertools.product(*(self._lists[name] for name in names))
        paths = [_filled(pattern, dict(zip(names, values, strict=True))) for values in chosen]
        found = [path for one in paths for path in (_matching(one) if "*" in one else [one])]
        return [self._made.get(path, path) for path in found]


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    return _NAME.sub(lambda match: values.get(match[1], match[0]), pattern)


def _matching(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.name[0] != ".")


@cache
def parameter_defaults(notebook: str) -> dict[str, Any]:
    """The names in a notebook's parameters cell with their defaults, read without importing what runs notebooks."""
    cells = json.loads(Path(notebook_named(notebook)).read_text(encoding="utf-8"))["cells"]
    cell = next(one for one in cells if "parameters" in one["metadata"].get("tags", []))
    statements = ast.parse("".join(cell["source"])).body
    return {
        one.target.id: ast.literal_eval(one.value)
        for one in statements
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.value is not None
    }


def parameter_names(notebook: str) -> list[str]:
    """The names in a notebook's parameters cell."""
    return list(parameter_defaults(notebook))
