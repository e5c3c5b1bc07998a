"""A tree's long-lived process: hears on its standard input what to measure, and answers on its standard output.

Runs with the tree's own environment and `finemoe`, in the tree's folder; nothing of the tree but these is used.
"""

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


class Answers:
    """Answers commands one by one; holds the subject that was prepared last."""

    def __init__(self) -> None:
        self._subject: Any = None

    def prepare(self, kind: str, options: dict[str, Any]) -> Any:
        """Make a subject ready, whose measurements then have no import and no compilation in them; what it should generate."""
        self.finish()
        self._subject = importlib.import_module(f"against.measured.{kind}").Measured(**options)
        return self._subject.expected

    def measure(self, variant: str) -> Any:
        """Run a variant once: its values by name, and the tokens that it generated (or None)."""
        gc.collect()
        return self._subject.measure(variant)

    def finish(self) -> None:
        """Let the subject go."""
        if self._subject is not None:
            self._subject.close()
            self._subject = None
            gc.collect()


def serve(tree: Path) -> None:
    """Answer until the input ends; whatever libraries print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import finemoe

    assert tree in Path(finemoe.__file__).parents, f"finemoe is imported from {finemoe.__file__}, not from {tree}"
    told = Answers()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"answer": getattr(told, command["do"])(**command["told"])}
        except Exception:
            answer = {"failure": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
