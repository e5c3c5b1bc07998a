"""Every notebook opens clean and by itself: no outputs, literal parameters with help, and the same names as its rule."""

import ast
import json
import shlex
import subprocess
import sys

import nbformat
import pytest
from papermill import inspect_notebook

from finemoe.artifact.pipeline.config import load
from finemoe.artifact.pipeline.notebooks import known_notebooks
from finemoe.paths import ROOT

pytestmark = pytest.mark.timeout(300)  # Snakemake plans everything

NOTEBOOKS = list(known_notebooks().values())
# These load a model.
LIVE = {"profile_models", "run_offloading", "quickstart", "engine_overhead", "paced_link", "validate_simulator", "f17"}
STAGES = {"profile_models", "build_expert_maps", "run_offloading", "simulate_testbed", "serve_online"}
BY_ITSELF = {"quickstart"}  # chooses its own settings
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def code_of(path):
    return ast.parse("\n".join(cell.source for cell in code_cells(path)))


@every_notebook
def test_committed_without_outputs(path):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(path))


@every_notebook
def test_metadata_names_the_kernel_every_environment_has(path):
    kernel = nbformat.read(path, as_version=4).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


@every_notebook
def test_one_parameters_cell_of_explained_literals(path):
    tags = [cell.metadata.get("tags", []) for cell in code_cells(path)]
    assert [index for index, names in enumerate(tags) if "parameters" in names] == [0]
    source = code_cells(path)[0].source
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.AnnAssign)
        ast.literal_eval(statement.value)
        assert "  # " in source.splitlines()[statement.end_lineno - 1]
    assert [statement.target.id for statement in ast.parse(source).body] == list(inspect_notebook(str(path)))


@every_notebook
def test_thin_and_explained(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert len(code_cells(path)) <= 10
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not [node for node in ast.walk(code_of(path)) if isinstance(node, definitions)]


IMPORTING = """
import json, sys, traceback
class Light:
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Light)
found = {}
for name, source in json.load(sys.stdin).items():
    try:
        exec(source, {})
    except ModuleNotFoundError:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""
HEAVY = {"an engine": "from finemoe.runtime.engine import Engine", "a model": "import transformers"}


def imports_of(path) -> str:
    return "\n".join(ast.unparse(node) for node in ast.walk(code_of(path)) if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.fixture(scope="module")
def heavy_imports() -> dict[str, str]:
    """Which notebooks, and which of HEAVY, import torch or transformers, themselves or by what they import: the traceback."""
    sources = {path.stem: imports_of(path) for path in NOTEBOOKS} | HEAVY
    command = [sys.executable, "-c", IMPORTING]
    done = subprocess.run(command, input=json.dumps(sources), capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


@every_notebook
def test_figure_notebooks_do_not_load_torch(path, heavy_imports):
    assert set(HEAVY) <= set(heavy_imports)  # what does load it is noticed
    if path.stem not in LIVE:
        assert path.stem not in heavy_imports, heavy_imports[path.stem]


@every_notebook
def test_paths_start_at_the_root_never_at_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not [name for name in ("os.getcwd", "Path.cwd", "os.chdir") if name in text]


@pytest.fixture(scope="module")
def jobs() -> list[tuple[str, dict, list[str]]]:
    """The jobs of a dry run that execute a notebook: its name, what the Snakefile passes to it, and what the job makes."""
    dry_run = [
        "--dry-run",
        "--forceall",
        "--rerun-incomplete",
        "--printshellcmds",
        "--cores",
        "2",
        "--nolock",
        "--workflow-profile",
        "none",
    ]
    command = [sys.executable, "-m", "snakemake", *dry_run]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    found, outputs = [], []
    for line in done.stdout.splitlines():
        if line.startswith("    output: "):
            outputs = line.removeprefix("    output: ").split(", ")
        if "finemoe.artifact.pipeline notebook" in line:
            call = shlex.split(line)
            name = call[call.index("notebook") + 1].removeprefix("notebooks/").removesuffix(".ipynb")
            found.append((name, json.loads(call[-1]), outputs))
    return found


@pytest.fixture(scope="module")
def rule_parameters(jobs) -> dict[str, dict]:
    """What the Snakefile would pass to each notebook."""
    return {name: parameters for name, parameters, _ in jobs}


@every_notebook
def test_rule_passes_known_parameters_and_every_path_and_setting(path, rule_parameters):
    known = inspect_notebook(str(path))
    passed = set(rule_parameters[path.stem])
    assert passed <= set(known)
    paths = {
        name for name, parameter in known.items() if "results/" in parameter["default"] or "figures/" in parameter["default"]
    }
    settings = set(known) & set(load()) if path.stem not in BY_ITSELF else set()
    assert paths | settings <= passed


@every_notebook
def test_run_by_hand_it_writes_beside_what_the_pipeline_made(path, jobs):
    """Whatever else is changed in the cell: "Run All" makes none of the pipeline's files."""
    known = inspect_notebook(str(path))
    of_pipeline = {output for _, _, outputs in jobs for output in outputs}
    written = {
        name
        for notebook, parameters, outputs in jobs
        for name, value in parameters.items()
        if notebook == path.stem
        and isinstance(value, str)
        and any(output.split(".")[0] == value.split(".")[0] for output in outputs)
    }
    assert written == {name for name, parameter in known.items() if parameter["help"].startswith("output: ")}
    for name in written:
        default = ast.literal_eval(known[name]["default"])
        assert default.split("/")[:2] in (["figures", "by-hand"], ["results", "by-hand"])
        assert not {output for output in of_pipeline if output.startswith(default)}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_stage_defaults_are_the_default_configuration(name):
    """A stage opened in JupyterLab makes what the pipeline would, not a variant of it."""
    defaults = inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    config = load()
    for parameter in set(defaults) & set(config):
        expected = config[parameter]["mixtral-mini"] if parameter == "prefetch_distance" else config[parameter]
        assert ast.literal_eval(defaults[parameter]["default"]) == expected, parameter
