"""Notebooks that are forks of a warm process: the same notebooks, and nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from finemoe.artifact.pipeline.warm_parent import ADDRESS, Nursery, WarmParent
from finemoe.errors import FinemoeError
from tests.artifact.pipeline.test_notebook import outputs_of, write_notebook

pytestmark = pytest.mark.timeout(300)  # it imports what notebooks import, and kernels start

COMMAND = [sys.executable, "-m", "finemoe.artifact.pipeline", "notebook"]


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    nursery.start()
    yield nursery
    nursery.stop()
    assert ADDRESS not in os.environ


def run(folder, parameters, *cells, **values):
    warm = WarmParent.of_this_run()
    assert warm is not None
    notebook = write_notebook(folder, parameters, *cells)
    warm.run_notebook(notebook, folder / "done.ipynb", values, folder / "log.txt", folder / "costs.tsv")
    return outputs_of(folder / "done.ipynb")


def test_parameters_reach_the_cells_and_outputs_are_kept(nursery, tmp_path):
    assert run(tmp_path, "count = 1", "print(count + 1)", count=41).strip() == "42"
    assert "42" in (tmp_path / "log.txt").read_text()


def test_the_kernel_has_the_askers_environment_and_nothing_of_this_package(nursery, tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_ASKER", "blue")
    cells = (
        "import sys, os",
        "print(os.environ['OF_THE_ASKER'], os.getcwd())",
        "print('pandas' in sys.modules, 'torch' in sys.modules, [m for m in sys.modules if m.startswith('finemoe.simulation')])",
        "import matplotlib.pyplot as plt; plt.plot([1, 2])",
    )
    printed = run(tmp_path, "x = 1", *cells)
    assert printed.splitlines()[:2] == [f"blue {tmp_path}", "True False []"]
    cells = nbformat.read(tmp_path / "done.ipynb", as_version=4).cells
    assert [output.data.get("image/png") for output in cells[-1].outputs if "data" in output][-1]  # drawn into the notebook


def test_two_notebooks_share_nothing_but_libraries(nursery, tmp_path):
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        found.append(
            run(tmp_path / name, "x = 1", "import os, pandas", "print(hasattr(pandas, 'mark'), os.getpid()); pandas.mark = 1")
        )
    flags, processes = zip(*(line.split() for line in found), strict=True)
    assert flags == ("False", "False")
    assert len(set(processes)) == 2


def test_what_it_cost_is_written_down(nursery, tmp_path):
    run(tmp_path, "x = 1", "import time; begin = time.process_time()", "while time.process_time() < begin + 0.5: pass")
    names, values = (line.split("\t") for line in (tmp_path / "costs.tsv").read_text().splitlines())
    costs = dict(zip(names, map(float, values), strict=True))
    assert list(costs) == ["wall_s", "cpu_s", "max_rss_mb"]
    assert costs["cpu_s"] > 0.5  # the kernel's, too
    assert costs["max_rss_mb"] > 50


def test_a_failing_cell_is_the_askers_error(nursery, tmp_path):
    cells = ("from finemoe.errors import FinemoeError", "raise FinemoeError('store is cut')")
    with pytest.raises(FinemoeError, match=r"trial.ipynb: store is cut\nThe traceback is in .*done.ipynb"):
        run(tmp_path, "x = 1", *cells)
    assert "store is cut" in str(nbformat.read(tmp_path / "done.ipynb", as_version=4).cells)
    assert not (tmp_path / "costs.tsv").exists()


def test_an_unknown_parameter_is_the_askers_error(nursery, tmp_path):
    with pytest.raises(FinemoeError, match="no parameter 'y'; known: x"):
        run(tmp_path, "x = 1", y=2)


def test_a_file_that_cannot_be_written_is_one_line(nursery, tmp_path):
    notebook = write_notebook(tmp_path, "x = 1")
    done = subprocess.run(
        [*COMMAND, str(notebook), "--output", str(tmp_path / "done.ipynb"), "--costs", "/dev/full/costs.tsv"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: trial.ipynb: /dev/full: File exists; free some space, or set results and figures to other folders"
    ]


def test_a_kernel_that_dies_is_an_error(nursery, tmp_path):
    with pytest.raises(FinemoeError, match=r"DeadKernelError|Kernel died|ended without an answer"):
        run(tmp_path, "x = 1", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")


def test_the_command_asks_it(nursery, tmp_path):
    notebook = write_notebook(tmp_path, "x = 1", "import os", "print(os.getppid())")
    done = subprocess.Popen([*COMMAND, str(notebook), "--output", str(tmp_path / "done.ipynb")])
    assert done.wait() == 0
    assert int(outputs_of(tmp_path / "done.ipynb")) != done.pid


def waits_until(is_so) -> bool:
    end = time.monotonic() + 60
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_a_notebook_ends_with_who_asked_for_it(nursery, tmp_path):
    marker = tmp_path / "kernel"
    cells = ("import os, pathlib, time", f"pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))", "time.sleep(600)")
    notebook = write_notebook(tmp_path, "x = 1", *cells)
    asking = subprocess.Popen([*COMMAND, str(notebook), "--output", str(tmp_path / "done.ipynb")])
    assert waits_until(lambda: marker.exists() and marker.read_text())
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    assert waits_until(lambda: not is_alive(int(marker.read_text())))


def test_it_ends_with_its_starter(tmp_path):
    program = (
        "from finemoe.artifact.pipeline.warm_parent import ADDRESS, Nursery; import os, time; "
        "Nursery().start(); print(os.environ[ADDRESS], flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    address = starter.stdout.readline().strip()
    folder, kernel = os.path.dirname(address.partition(os.pathsep)[0]), tmp_path / "kernel"
    cells = ("import os, pathlib, time", f"pathlib.Path({str(kernel)!r}).write_text(str(os.getpid()))", "time.sleep(600)")
    notebook = write_notebook(tmp_path, "x = 1", *cells)
    command = [*COMMAND, str(notebook), "--output", str(tmp_path / "done.ipynb")]
    asking = subprocess.Popen(command, env={**os.environ, ADDRESS: address}, stderr=subprocess.PIPE, text=True)
    assert waits_until(lambda: kernel.exists() and kernel.read_text())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    _, errors = asking.communicate(timeout=60)
    assert asking.returncode == 1
    assert "ended without an answer" in errors
    assert waits_until(lambda: not is_alive(int(kernel.read_text())))
    assert waits_until(lambda: not os.path.exists(folder))


def test_another_interpreter_or_an_empty_address_asks_nobody(monkeypatch):
    for address in ("", f"/nowhere/s{os.pathsep}{sys.executable}", f"/nowhere/s{os.pathsep}/another/python"):
        monkeypatch.setenv(ADDRESS, address)
        assert WarmParent.of_this_run() is None
    monkeypatch.delenv(ADDRESS)
    assert WarmParent.of_this_run() is None


def test_costs_without_a_warm_process(tmp_path):
    notebook = write_notebook(tmp_path, "x = 1", "print(x)")
    arguments = [
        "--output",
        str(tmp_path / "done.ipynb"),
        "--costs",
        str(tmp_path / "costs.tsv"),
        "--parameters-json",
        "{}",
    ]
    done = subprocess.run([*COMMAND, str(notebook), *arguments], env={**os.environ, ADDRESS: ""})
    assert done.returncode == 0
    assert (tmp_path / "costs.tsv").read_text().startswith("wall_s\tcpu_s\tmax_rss_mb\n")
