"""A tree of the comparison: where it lies, and its environment."""

import os
import subprocess
from pathlib import Path

_MEASURING = Path(__file__).resolve().parent.parent  # where the package `against` is
_SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


class TreeError(Exception):
    """A tree's process failed, or there is no such tree."""


class Tree:
    """A checkout with its environment.

    Args:
        folder: the checkout's root; python: an interpreter that has what it needs, by default that of its `.venv`.
    Raises:
        TreeError: there is no such interpreter.
    """

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.python = python or self.folder / ".venv" / "bin" / "python"
        if not self.python.exists():
            raise TreeError(f"{self.python} is not there; run `make install` in {self.folder}")

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes: its own `finemoe` before all, then this checkout's measuring code, one thread in every library."""
        return {**os.environ, **_SETTINGS, "PYTHONPATH": os.pathsep.join([str(self.folder), str(_MEASURING)])}


def checked_out(revision: str, repository: Path, place: Path) -> Tree:
    """A revision in a folder of its own, installed as it says itself; one that is there already is taken as it is.

    Args:
        repository: whose revision it is; place: the folder in which its folder lies.
    Raises:
        TreeError: there is no such revision, or it cannot be installed.
    """
    commit = _run(["git", "rev-parse", "--verify", f"{revision}^{{commit}}"], repository).strip()
    folder = place / commit[:12]
    if not folder.exists():
        place.mkdir(parents=True, exist_ok=True)
        _run(["git", "worktree", "add", "--detach", str(folder), commit], repository)
    _run(["make", "install"], folder)
    return Tree(folder)


def _run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise TreeError(f"`{' '.join(command)}` failed in {folder}")
    return done.stdout
