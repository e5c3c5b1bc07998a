"""Run one parameterised notebook, strictly.

A wrapper around `papermill.execute_notebook` that adds what a pipeline needs: an unknown parameter is an error, the kernel is
this interpreter regardless of the installed kernels, kernels communicate over private sockets (ports race when many start at
once), and the user's start-up files are ignored.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.artifact.pipeline.notebooks import known_notebooks
from finemoe.errors import FinemoeError
from finemoe.paths import HEADLESS
from finemoe.suggestions import suggestion

if TYPE_CHECKING:
    from finemoe.artifact.pipeline.forked_kernel import WaitingKernel

_LONGEST_CELL_S = 3600  # a kernel that never answers is a failure
_LONGEST_SOCKET_FOLDER = 60  # Unix socket paths are limited to 108 characters


def parameters_of(notebook: Path) -> dict[str, str]:
    """The parameters of a notebook and their default values, as source text.

    Raises:
        FinemoeError: the notebook does not exist.
    """
    from papermill.iorw import load_notebook_node
    from papermill.translators import PythonTranslator
    from papermill.utils import find_first_tagged_cell_index

    if not notebook.is_file():
        raise FinemoeError(f"{notebook}: no such notebook; known: {', '.join(known_notebooks())}")
    with _quiet():
        node = load_notebook_node(str(notebook))
        index = find_first_tagged_cell_index(node, "parameters")
        found = PythonTranslator.inspect(node.cells[index]) if index >= 0 else []
    return {parameter.name: str(parameter.default) for parameter in found}


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    log: Path | None = None,
    kernel: "WaitingKernel | None" = None,
) -> None:
    """Execute `notebook` with `parameters` and write the executed copy to `output`, also when a cell fails.

    Args:
        notebook: path of the notebook.
        output: path of the executed copy.
        parameters: values by parameter name.
        log: text file for the cells' output; None discards it.
        kernel: a fork of this process to use as the kernel; None starts a new one.

    Raises:
        FinemoeError: the notebook has no such parameter, or a cell fails; the message contains the cell's error.
    """
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    _check_names(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    with _private_kernel(kernel) as private, _log_to(log):
        try:
            execute_notebook(
                str(notebook),
                str(output),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                log_output=log is not None,
                execution_timeout=_LONGEST_CELL_S,
                cwd=str(notebook.parent),  # as in JupyterLab
                config=private,
            )
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".removeprefix("FinemoeError: ")
            raise FinemoeError(f"{notebook.name}: {reason}\nThe traceback is in {output}") from error


def of_files(error: OSError) -> str:
    """An error on a file that a run reads or writes, with the remedy."""
    return (
        f"{error.filename or 'a file'}: {error.strerror or error}; free some space, or set results and figures to other folders"
    )


def _check_names(notebook: Path, parameters: Mapping[str, Any]) -> None:
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise FinemoeError(f"{notebook.name}: no parameter {name!r}; {suggestion(name, known)}")


@contextmanager
def _private_kernel(waiting: "WaitingKernel | None") -> Iterator[Any]:
    """Configuration of a kernel in this interpreter, with sockets and an IPython profile in a private folder."""
    from traitlets.config import Config

    root = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="nb", dir=root if len(root) < _LONGEST_SOCKET_FOLDER else "/tmp") as folder:
        private = {
            "IPYTHONDIR": folder,
            "JUPYTER_RUNTIME_DIR": folder,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONSTARTUP": None,  # IPython would run it
            "PYTHONHOME": _home_of_this_interpreter(),
            HEADLESS: "1",
        }
        with _environment(private):
            yield Config(
                KernelManager={"transport": "ipc", "ip": f"{folder}/k"},
                NotebookClient={
                    "kernel_manager_class": _kernel_manager(waiting),
                    "extra_arguments": ["--log-level=CRITICAL"],  # hides the final interrupt
                },
            )


def _kernel_manager(waiting: "WaitingKernel | None") -> type:
    """A kernel manager that always starts this interpreter. It looks up no kernelspec, so it cannot find a wrong one."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    described = get_kernel_dict(python_arguments=_flags_of_this_interpreter())
    described["metadata"] |= {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}  # overrides the environment

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**described)

    return ThisInterpreter if waiting is None else _forked(ThisInterpreter, waiting)


def _forked(manager: Any, waiting: "WaitingKernel") -> type:
    """A subclass of `manager` whose kernel is the given fork of this process."""
    from finemoe.artifact.pipeline.forked_kernel import ForkProvisioner

    class ForkOfThisInterpreter(manager):
        def __init__(self, **traits: Any) -> None:
            super().__init__(**traits)
            self.provisioner = ForkProvisioner(waiting, kernel_id="", kernel_spec=self.kernel_spec, parent=self)

    return ForkOfThisInterpreter


def _flags_of_this_interpreter() -> list[str]:
    """The flags that decide where Python finds its modules."""
    chosen = {"-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    return [flag for flag, is_set in chosen.items() if is_set]


def _home_of_this_interpreter() -> str | None:
    """PYTHONHOME if it names this interpreter's prefix. If it was set later, or was ignored, it would misdirect a kernel."""
    home = os.environ.get("PYTHONHOME")
    return home if home and home.partition(os.pathsep)[0] == sys.base_prefix else None


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set these variables within the block; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _log_to(log: Path | None) -> Iterator[None]:
    """Send papermill's log, including the cells' output, to a file only."""
    if log is None:
        with _quiet():
            yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, mode="w", encoding="utf-8")
    logger = logging.getLogger("papermill")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
