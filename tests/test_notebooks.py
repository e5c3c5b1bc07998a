"""Every notebook opens clean and by itself: no outputs, literal parameters with help, and the same names as its rule."""

import ast
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from docutils.core import publish_parts
from jinja2 import Environment
from papermill import inspect_notebook

from finemoe.artifact.pipeline.config import load
from finemoe.artifact.pipeline.notebooks import known_notebooks, notebook_named
from finemoe.paths import ROOT

pytestmark = pytest.mark.timeout(300)  # Snakemake plans everything

NAMES = {path: name for name, path in known_notebooks().items()}
NOTEBOOKS = list(NAMES)
# These load a model.
LIVE = {"profile_models", "run_offloading", "quickstart", "engine_overhead", "paced_link", "validate_simulator", "f17"}
STAGES = {"profile_models", "build_expert_maps", "run_offloading", "simulate_testbed", "serve_online"}
BY_ITSELF = {"quickstart"}  # chooses its own settings
MOST_LINES = 15  # of a code cell but the parameters'; what is longer belongs in the package, under test
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES.get)


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
    assert [cell.source for cell in code_cells(path)[1:] if len(cell.source.splitlines()) > MOST_LINES] == []
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not [node for node in ast.walk(code_of(path)) if isinstance(node, definitions)]


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.parent.name == "tour"], ids=lambda path: path.stem)
def test_the_tour_says_what_it_teaches_takes_and_needs_and_what_comes_next(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert all(word in cells[0] for word in ("**You learn**", "**Time:**", "**Needed:**"))
    assert cells[-1].startswith("## Next\n")


@pytest.mark.parametrize(
    ("folder", "words"),
    [("stages", ("**In:**", "**Out:**", "**Why:**")), ("studies", ("**Question.**", "**Method.**", "**Answer.**"))],
)
def test_stages_and_studies_begin_with_what_they_are_for(folder, words):
    for path in [path for path in NOTEBOOKS if path.parent.name == folder]:
        first = nbformat.read(path, as_version=4).cells[0].source
        assert all(word in first for word in words), path.name


CAPTIONS = sorted((ROOT / "notebooks" / "captions").glob("*.rst"))


def rendered(caption: str, *targets: str) -> str:
    """As `snakemake --report` renders it, with links to what it shows."""
    shown = [SimpleNamespace(target=target, path=f"figures/{target}") for target in targets]
    links = "\n".join(f".. _{name}: javascript:show('{name}')" for name in ("Workflow", *targets))
    text = Environment().from_string(f"{caption}\n\n{links}\n").render(files=shown)
    return publish_parts(text, writer_name="html", settings_overrides={"report_level": 1, "halt_level": 2})["html_body"]


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_captions_render(path):
    html = rendered(path.read_text(encoding="utf-8"), "f10.png", "claims.html")
    assert len(html.split()) > 5


def test_the_landing_page_links_the_claims_and_fits_a_screen():
    """Snakemake centres it: what is taller than the window cannot be scrolled to."""
    text = (ROOT / "notebooks" / "captions" / "report.rst").read_text(encoding="utf-8")
    assert "show('claims.html')" in rendered(text, "f10.png", "claims.html")
    assert len(text.split()) < 150


def test_every_figure_of_the_report_has_a_caption_and_none_is_left_over(jobs):
    pictures = {output for _, _, outputs in jobs for output in outputs if output.endswith(".png")}
    stems = {picture.split("/")[1].removesuffix(".png") for picture in pictures}
    assert {path.stem for path in CAPTIONS} == stems | {"claims", "report"}


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
    sources = {name: imports_of(path) for path, name in NAMES.items()} | HEAVY
    command = [sys.executable, "-c", IMPORTING]
    done = subprocess.run(command, input=json.dumps(sources), capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


@every_notebook
def test_figure_notebooks_do_not_load_torch(path, heavy_imports):
    assert set(HEAVY) <= set(heavy_imports)  # what does load it is noticed
    if NAMES[path] not in LIVE:
        assert NAMES[path] not in heavy_imports, heavy_imports[NAMES[path]]


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
            name = NAMES[ROOT / call[call.index("notebook") + 1]]
            found.append((name, json.loads(call[-1]), outputs))
    return found


@pytest.fixture(scope="module")
def rule_parameters(jobs) -> dict[str, dict]:
    """What the Snakefile would pass to each notebook."""
    return {name: parameters for name, parameters, _ in jobs}


@every_notebook
def test_rule_passes_known_parameters_and_every_path_and_setting(path, rule_parameters):
    known = inspect_notebook(str(path))
    passed = set(rule_parameters[NAMES[path]])
    assert passed <= set(known)
    paths = {
        name for name, parameter in known.items() if "results/" in parameter["default"] or "figures/" in parameter["default"]
    }
    settings = set(known) & set(load()) if NAMES[path] not in BY_ITSELF else set()
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
        if notebook == NAMES[path]
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
    defaults = inspect_notebook(str(notebook_named(name)))
    config = load()
    for parameter in set(defaults) & set(config):
        expected = config[parameter]["mixtral-mini"] if parameter == "prefetch_distance" else config[parameter]
        assert ast.literal_eval(defaults[parameter]["default"]) == expected, parameter
