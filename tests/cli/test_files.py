"""Files that commands write: never half, never in the place of a device, and one line where they cannot be written."""

import errno
import os
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.files import atomic_path
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE as GOLDEN

run = CliRunner().invoke


def test_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # as /dev/null, but harmless
    done = run(app, ["import", str(GOLDEN), "-o", str(tmp_path / "pipe")])
    assert "is not a regular file; name a file to write" in str(done.exception)
    with pytest.raises(FinemoeError, match="is not a regular file"), atomic_path(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_is_no_trace(tmp_path):
    assert str(run(app, ["replay", str(tmp_path)]).exception) == f"{tmp_path}: is a folder; name a routing-trace file"


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    done = run(app, ["import", str(GOLDEN), "-o", str(tmp_path / "a.trace")])
    line = f"{tmp_path / 'a.trace'}: {os.strerror(errno.ENOSPC)}; free some space, or write elsewhere"
    assert str(done.exception) == line
    assert list(tmp_path.iterdir()) == []


def test_two_runs_that_write_one_file_leave_it_whole(tmp_path):
    command = [sys.executable, "-m", "finemoe", "import", str(GOLDEN), "-o", str(tmp_path / "a.trace")]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [one.communicate()[1] for one in runs] == [b"", b""]
    assert [one.returncode for one in runs] == [0, 0]
    assert RoutingTrace.load(tmp_path / "a.trace").num_rows == RoutingTrace.load(GOLDEN).num_rows
    assert [path.name for path in tmp_path.iterdir()] == ["a.trace"]


def test_a_trace_is_not_its_own_history():
    done = run(app, ["replay", str(GOLDEN), "--history", str(GOLDEN)])
    assert "--history names TRACE itself" in str(done.exception)
