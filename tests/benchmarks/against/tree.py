"""A tree of the comparison: where it lies, its environment, and the process that measures it."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class TreeError(Exception):
    """A tree's process failed, or there is no such tree."""


class Tree:
    """A checkout with its environment.

    Args:
        folder: the checkout's root; python: an interpreter that has what it needs, by default that of its `.venv`.
    """

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.python = python or self.folder / ".venv" / "bin" / "python"
        if not self.python.exists():
            raise TreeError(f"{self.python} is not there; run `make install` in {self.folder}")

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes: its own `finemoe` before all, then this checkout's measuring code, one thread in every library."""
        path = os.pathsep.join([str(self.folder), str(HERE.parent)])
        return {
            **os.environ,
            **ONE_THREAD,
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
        }


class Worker:
    """A tree's process, which measures what it is told; a context manager that ends it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._process = subprocess.Popen(
            [tree.python, "-m", "against.worker", tree.folder],
            cwd=tree.folder,
            env=tree.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **told: Any) -> Any:
        """What the process answers to a command.

        Raises:
            TreeError: the command failed there, or the process is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "told": told}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failure": f"its process ended with status {self._process.wait()}"}
        if "failure" in answer:
            raise TreeError(f"{self._tree.folder}: {do} {told}: {answer['failure']}")
        return answer["answer"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
