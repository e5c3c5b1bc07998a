"""A tree's long-lived process, from the side of whoever asks."""

import json
import subprocess
from types import TracebackType
from typing import Any

from .tree import Tree, TreeError


class Worker:
    """A tree's process, which measures what it is told; a context manager that ends it.

    Args:
        niceness: of the process; below 0 it goes before others on a machine with more to do, which only root may ask for.
    """

    def __init__(self, tree: Tree, niceness: int = 0) -> None:
        self._tree = tree
        self._process = subprocess.Popen(
            ["nice", "-n", str(niceness), tree.python, "-m", "against.worker", tree.folder],
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
        answer = self._answer(json.dumps({"do": do, "told": told}) + "\n")
        if "failure" in answer:
            raise TreeError(f"{self._tree.folder}: {do} {told}: {answer['failure']}")
        return answer["answer"]

    def _answer(self, command: str) -> Any:
        commands, answers = self._process.stdin, self._process.stdout
        assert commands
        assert answers
        try:
            commands.write(command)
            commands.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"failure": f"its process ended with status {self._process.wait()}"}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()  # which ends its input
