import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from finemoe.errors import FinemoeError
from finemoe.pipeline.notebook import parameters_of, run_notebook


def write_notebook(folder: Path, parameters: str, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}})
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


def test_unknown_parameter_is_an_error_with_a_suggestion(tmp_path):
    notebook = write_notebook(tmp_path, "num_prompts = 1")
    with pytest.raises(FinemoeError, match="no parameter 'num_promts'; did you mean 'num_prompts'"):
        run_notebook(notebook, tmp_path / "done.ipynb", {"num_promts": 2})
    assert not (tmp_path / "done.ipynb").exists()


def test_missing_notebook_lists_the_known_ones(tmp_path):
    with pytest.raises(FinemoeError, match=r"no such notebook; there are .*quickstart"):
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
    command = [sys.executable, "-m", "finemoe.pipeline", "notebook"]
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
        "finemoe.pipeline",
        "notebook",
        str(notebook),
        "--output",
        str(tmp_path / "o.ipynb"),
        "-p",
        "y=2",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: trial.ipynb: no parameter 'y'; it has x"
