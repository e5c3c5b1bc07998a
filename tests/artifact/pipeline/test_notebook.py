import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from finemoe.artifact.pipeline.notebook import parameters_of, run_notebook
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT

pytestmark = pytest.mark.timeout(300)  # several kernels start

KERNEL = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}


def write_notebook(folder: Path, parameters: str, *cells: str, metadata: dict = KERNEL) -> Path:
    notebook = nbformat.v4.new_notebook(metadata=metadata)
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = folder / "trial.ipynb"
    nbformat.write(notebook, path)
    return path


def outputs_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_parameters_reach_the_cells_and_outputs_are_kept(tmp_path):
    notebook = write_notebook(tmp_path, "count: int = 1  # how many\nnames: list[str] = []", "print(count + 1, names)")
    assert parameters_of(notebook) == {"count": "1", "names": "[]"}
    run_notebook(notebook, tmp_path / "out" / "done.ipynb", {"count": 41, "names": ["a b", "c'd"]}, tmp_path / "log.txt")
    assert "42 ['a b', \"c'd\"]" in outputs_of(tmp_path / "out" / "done.ipynb")
    assert "42" in (tmp_path / "log.txt").read_text()


def test_kernel_is_this_python_with_a_private_profile(tmp_path):
    cells = "import sys, os", "print(sys.executable)", "print(os.environ['IPYTHONDIR'])", "print(os.getcwd())"
    notebook = write_notebook(tmp_path, "x = 1", *cells)
    run_notebook(notebook, tmp_path / "done.ipynb", {})
    executable, profile, folder = outputs_of(tmp_path / "done.ipynb").split()
    assert Path(executable).samefile(sys.executable)
    assert not Path(profile).exists()  # temporary, and gone
    assert folder == str(tmp_path)
    assert profile != os.environ.get("IPYTHONDIR")


def foreign_kernel(folder: Path, name: str, program: str) -> None:
    """A kernelspec that says to run another program."""
    path = folder / "kernels" / name / "kernel.json"
    path.parent.mkdir(parents=True)
    command = [program, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    path.write_text(json.dumps({"argv": command, "display_name": "", "language": "python"}))


@pytest.mark.parametrize("place", ["JUPYTER_PATH", "JUPYTER_DATA_DIR", "HOME", "XDG_DATA_HOME"])
@pytest.mark.parametrize("program", ["foreign", "/opt/removed/bin/python"])
def test_a_kernelspec_elsewhere_takes_no_notebook_there(tmp_path, monkeypatch, place, program):
    folders = {"HOME": "home/.local/share/jupyter", "XDG_DATA_HOME": "home/jupyter"}
    if program == "foreign":
        program = str(tmp_path / "foreign")
        (tmp_path / "foreign").write_text(f'#!/bin/sh\nFOREIGN=yes exec {sys.executable} "$@"\n')
        (tmp_path / "foreign").chmod(0o755)
    for name in ("python3", "python", "ir"):
        foreign_kernel(tmp_path / folders.get(place, "home"), name, program)
    monkeypatch.setenv(place, str(tmp_path / "home"))
    notebook = write_notebook(tmp_path, "x = 1", "import os, sys", "print(sys.executable, os.environ.get('FOREIGN'))")
    run_notebook(notebook, tmp_path / "done.ipynb", {"x": 2})
    assert outputs_of(tmp_path / "done.ipynb").split() == [sys.executable, "None"]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}},
        {"kernelspec": {"name": "of-a-removed-environment", "display_name": ""}, "language_info": {"name": "julia"}},
    ],
)
def test_the_kernel_that_a_notebook_names_does_not_matter(tmp_path, metadata):
    notebook = write_notebook(tmp_path, "x: int = 1  # one", "import sys", "print(sys.executable, x)", metadata=metadata)
    assert parameters_of(notebook) == {"x": "1"}
    run_notebook(notebook, tmp_path / "done.ipynb", {"x": 2})
    assert outputs_of(tmp_path / "done.ipynb").split() == [sys.executable, "2"]


def test_the_environment_takes_no_notebook_elsewhere_and_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "startup.py").write_text("raise SystemExit('a start-up file ran')")
    settings = {
        "PYTHONHOME": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "startup.py"),
        "PYTHONEXECUTABLE": "/opt/removed/bin/python",
        "JUPYTER_DEFAULT_PROVISIONER_NAME": "of-a-cluster",
        "JUPYTER_PREFER_ENV_PATH": "0",
        "JUPYTER_RUNTIME_DIR": "/dev/null/runtime",
        "HOME": "/dev/null/home",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    notebook = write_notebook(tmp_path, "x = 1", "import sys", "print(sys.executable, sys.prefix)")
    run_notebook(notebook, tmp_path / "done.ipynb", {})
    assert outputs_of(tmp_path / "done.ipynb").split() == [sys.executable, sys.prefix]
    assert {name: os.environ[name] for name in settings} == settings


def test_an_isolated_interpreter_has_an_isolated_kernel(tmp_path):
    """What PYTHONPATH names stays out of both."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "foreign.py").write_text("")
    notebook = write_notebook(tmp_path, "x = 1", "import importlib.util", "print(importlib.util.find_spec('foreign'))")
    program = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); from finemoe.artifact.pipeline.notebook import run_notebook; "
        "run_notebook(*map(pathlib.Path, sys.argv[2:]), {})"
    )
    command = [sys.executable, "-E", "-c", program, str(ROOT), str(notebook), str(tmp_path / "done.ipynb")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")})
    assert outputs_of(tmp_path / "done.ipynb").strip() == "None"


def test_unknown_parameter_is_an_error_with_a_suggestion(tmp_path):
    notebook = write_notebook(tmp_path, "num_prompts = 1")
    with pytest.raises(FinemoeError, match="no parameter 'num_promts'; did you mean 'num_prompts'"):
        run_notebook(notebook, tmp_path / "done.ipynb", {"num_promts": 2})
    assert not (tmp_path / "done.ipynb").exists()


def test_missing_notebook_lists_the_known_ones(tmp_path):
    with pytest.raises(FinemoeError, match=r"no such notebook; known: .*quickstart"):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "done.ipynb", {})


def test_failing_cell_gives_one_line_and_keeps_the_traceback(tmp_path):
    notebook = write_notebook(tmp_path, "x = 1", "from finemoe.errors import FinemoeError", "raise FinemoeError('store is cut')")
    with pytest.raises(FinemoeError, match=r"trial.ipynb: store is cut\nThe traceback is in .*done.ipynb"):
        run_notebook(notebook, tmp_path / "done.ipynb", {}, tmp_path / "log.txt")
    assert "store is cut" in str(nbformat.read(tmp_path / "done.ipynb", as_version=4).cells)


def test_kernels_beside_each_other_do_not_collide(tmp_path):
    folders = [tmp_path / str(index) for index in range(4)]
    for folder in folders:
        folder.mkdir()
        write_notebook(folder, "value = 0", "print('value', value)")
    command = [sys.executable, "-m", "finemoe.artifact.pipeline", "notebook"]
    runs = [
        [*command, str(folder / "trial.ipynb"), "--output", str(folder / "done.ipynb"), "-p", f"value={index}"]
        for index, folder in enumerate(folders)
    ]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda run: subprocess.run(run, capture_output=True, text=True), runs))
    assert [one.returncode for one in done] == [0] * 4, [one.stderr for one in done]
    assert [outputs_of(folder / "done.ipynb").strip() for folder in folders] == [f"value {index}" for index in range(4)]


def test_command_reports_a_mistake_in_one_line(tmp_path):
    notebook = write_notebook(tmp_path, "x = 1")
    command = [
        sys.executable,
        "-m",
        "finemoe.artifact.pipeline",
        "notebook",
        str(notebook),
        "--output",
        str(tmp_path / "o.ipynb"),
        "-p",
        "y=2",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: trial.ipynb: no parameter 'y'; known: x"
