import ast
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from finemoe.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + [text for extra in EXTRAS.values() for text in extra]]
IMPORT_NAMES = {"yaml": "pyyaml", "prometheus_client": "prometheus-client"}


def lock_lines() -> list[str]:
    return [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]


def lock() -> dict[str, Version]:
    pins = [line.split("==") for line in lock_lines()]
    assert all(len(pin) == 2 for pin in pins), "the lock holds exact versions only"
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_lock_pins_every_direct_dependency_inside_its_range(requirement):
    assert lock()[canonicalize_name(requirement.name)] in requirement.specifier


def test_lock_installs_anywhere():
    text = (ROOT / "requirements.lock").read_text()
    assert lock()["torch"] == Version("2.13.0")
    assert "+cpu" not in text
    assert "://" not in text
    assert not [name for name in lock() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_conda_environment_has_the_pins_of_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert from_pip == {"pip": lock_lines()}
    assert pip == "pip"
    assert Version(python.removeprefix("python=")) in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_declared_ranges_are_those_promised():
    ranges = {requirement.name: str(requirement.specifier) for requirement in DIRECT}
    assert (ranges["torch"], ranges["transformers"]) == (">=2.11", ">=5.23")
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_every_import_of_the_package_is_declared():
    """The library's without extras, the server's with its own, the artefact's with all of them."""
    everything = {canonicalize_name(requirement.name) for requirement in DIRECT}
    of_library = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    of_server = of_library | {canonicalize_name(Requirement(text).name) for text in EXTRAS["serve"]}
    of_part = {ROOT / "finemoe" / "artifact": everything, ROOT / "finemoe" / "serving": of_server}
    for path in (ROOT / "finemoe").rglob("*.py"):
        declared = next((names for part, names in of_part.items() if part in path.parents), of_library)
        for name in imported_packages(ast.parse(path.read_text(encoding="utf-8"))):
            known = name in sys.stdlib_module_names or name == "finemoe"
            assert known or canonicalize_name(IMPORT_NAMES.get(name, name)) in declared, f"{path.name} imports {name}"


def imported_packages(tree: ast.AST) -> set[str]:
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.split(".")[0] for name in plain + named}
