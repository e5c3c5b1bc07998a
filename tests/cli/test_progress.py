"""Progress: on a terminal with the time left, nowhere else."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from finemoe.cli import progress
from tests.simulation.golden import FILE as GOLDEN

pytestmark = pytest.mark.timeout(300)


def on_terminal(*arguments: str) -> tuple[str, str, int]:
    """Standard output, what a terminal on standard error shows, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-m", "finemoe", *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 1 << 16):
                shown.append(part)
        except OSError:  # Linux reports the end of a terminal so
            pass

    reader = threading.Thread(target=read)
    reader.start()
    output, _ = process.communicate()
    reader.join()
    os.close(ours)
    return output, b"".join(shown).decode(), process.returncode


def test_a_terminal_shows_progress_and_a_pipe_only_results():
    arguments = ["replay", str(GOLDEN), "--prefetch-distance", "2", "--policy", "on-demand", "--policy", "finemoe"]
    output, shown, code = on_terminal(*arguments)
    assert code == 0
    assert "systems:" in shown
    assert re.search(r"on-demand: +\d+%", shown)
    assert re.search(r"systems: 100%.*<", shown)  # tqdm's elapsed<left
    silent = subprocess.run([sys.executable, "-m", "finemoe", *arguments], capture_output=True, text=True)
    assert (silent.stdout, silent.stderr) == (output, "")
    as_json, shown, _ = on_terminal(*arguments, "--json")
    assert shown == ""
    assert as_json.startswith("[")


def test_a_stage_shows_time_taken_and_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_EVERY_S", 0.01)
    done = threading.Event()
    shares = iter([0.0, 0.25, 0.5])

    def share() -> float | None:
        value = next(shares, None)
        if value is None:
            done.set()
        return value

    with progress.stage("reading a.trace", True, share):
        assert done.wait(10)
    shown = capsys.readouterr().err
    assert "reading a.trace (0:00)" in shown
    assert "reading a.trace: 25% (0:00, 0:00 left)" in shown
    assert shown.endswith("\r\x1b[K")  # the line is cleared
    with progress.stage("reading a.trace", False):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/proc/self/fdinfo"), reason="no /proc")
def test_the_share_of_a_file_that_is_read(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1000))
    share = progress.share_read(path)
    assert share() is None
    with path.open("rb", buffering=0) as file:
        file.read(250)
        assert share() == 0.25
    assert progress.share_read(tmp_path / "none")() is None


def test_compiling_is_announced(capsys):
    import numba

    with progress.compiling_shown(True):
        numba.njit(lambda number: 2 * number)(3)
    assert "compiling, once per installation, about a minute: function 1 (0:00)" in capsys.readouterr().err
    with progress.compiling_shown(False):
        numba.njit(lambda number: 3 * number)(3)
    assert capsys.readouterr().err == ""
