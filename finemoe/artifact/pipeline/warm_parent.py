"""A process that has imported the libraries of the notebooks and forks itself for each notebook to run.

A small notebook runs for a second, but its imports take five. `Nursery` starts and stops this process. `python -m
finemoe.artifact.pipeline notebook` (see `WarmParent`) connects to it if the environment names one. It imports only libraries, no
module of this package that a notebook reads, so every notebook sees the current source files.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError

# Environment variable: its socket and its interpreter. If empty or unset, every notebook runs in a separate process.
ADDRESS = "FINEMOE_WARM_PARENT"
# Set before Matplotlib is imported: a kernel draws into its notebook.
_SETTINGS = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
_LIBRARIES = (
    "papermill",
    "papermill.execute",
    "ipykernel.kernelapp",
    "jupyter_client.manager",
    "numpy",
    "numba",
    "pandas",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "seaborn",
)
_POLL_S = 0.5
_WAITING = 128  # length of the connection queue


class Nursery:
    """The warm process of one run of the pipeline, from `start` to `stop`; it also ends when the process that started it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and publish its address to all processes started from here on."""
        address = f"{tempfile.mkdtemp(prefix='fm')}/s"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen(_WAITING)  # early connections wait until the libraries are imported
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        command = [sys.executable, "-m", "finemoe.artifact.pipeline.warm_parent", str(listener.fileno())]
        environment = {**os.environ, **threads, **_SETTINGS}
        with listener:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, env=environment, pass_fds=[listener.fileno()], start_new_session=True
            )
        os.environ[ADDRESS] = f"{address}{os.pathsep}{sys.executable}"

    def stop(self) -> None:
        """Stop the process if it is running."""
        os.environ.pop(ADDRESS, None)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


class WarmParent:
    """A client of the warm process, which runs notebooks there."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def of_this_run(cls) -> "WarmParent | None":
        """A connection to the process named by the environment; None if none is named or none is listening."""
        address, _, interpreter = os.environ.get(ADDRESS, "").partition(os.pathsep)
        if not address or interpreter != sys.executable:  # e.g. if Snakemake creates an environment for the rule
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            return None
        return cls(connection)

    def run_notebook(
        self, notebook: Path, output: Path, parameters: dict[str, Any], log: Path | None, costs: Path | None
    ) -> None:
        """Run `notebook.run_notebook` within `costs_written`, in a fork of the warm process, which ends when this process ends.

        Raises:
            FinemoeError: as in `run_notebook`, or the fork ended without an answer.
        """
        paths = {"notebook": notebook, "output": output, "log": log, "costs": costs}
        order = {
            "paths": {name: str(path) for name, path in paths.items() if path is not None},
            "parameters": parameters,
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
        }
        with self._connection as connection:
            socket.send_fds(connection, [b"\0"], [sys.stdout.fileno(), sys.stderr.fileno()])
            connection.sendall(json.dumps(order).encode() + b"\n")
            answer = connection.makefile("rb").read()
        if not answer:
            raise FinemoeError(f"{notebook.name}: the process that ran it ended without an answer; see its output")
        if error := json.loads(answer)["error"]:
            raise FinemoeError(error)


class _Forks(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """A server that forks for every connection."""

    max_children = 1000
    block_on_close = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__("", _Fork, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def service_actions(self) -> None:
        """Periodically reap forks that have ended, and stop when the starter has ended, which closes its end of the pipe."""
        super().service_actions()
        if select.select([0], [], [], 0)[0]:
            raise EOFError

    def server_close(self) -> None:
        """Kill all forks that still run."""
        for pid in self.active_children or ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        super().server_close()


class _Fork(socketserver.BaseRequestHandler):
    """One notebook: reads an order, runs it, and answers with the error, if any."""

    request: socket.socket

    def handle(self) -> None:
        os.setsid()  # a process group that contains the kernel
        _, files, _, _ = socket.recv_fds(self.request, 1, 2)
        if len(files) != 2:
            return
        for number, file in enumerate(files, start=1):
            os.dup2(file, number)
            os.close(file)
        order = json.loads(self.request.makefile("rb").readline())
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        self.request.sendall(json.dumps({"error": self._error_of(order)}).encode())

    def _error_of(self, order: dict[str, Any]) -> str:
        from finemoe.artifact.pipeline.costs import costs_written
        from finemoe.artifact.pipeline.forked_kernel import WaitingKernel
        from finemoe.artifact.pipeline.notebook import of_files, run_notebook

        paths = {name: Path(path) for name, path in order["paths"].items()}
        kernel = WaitingKernel(self.request)
        threading.Thread(target=_end_with, args=(self.request,), daemon=True).start()
        try:
            with costs_written(paths.get("costs")):
                run_notebook(paths["notebook"], paths["output"], order["parameters"], paths.get("log"), kernel)
        except FinemoeError as error:
            return str(error) or "failed"
        except OSError as error:
            return f"{paths['notebook'].name}: {of_files(error)}"
        return ""


def _end_with(connection: socket.socket) -> None:
    """Kill this process group when the client is gone: reading from the connection returns only once it is closed."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.killpg(0, signal.SIGKILL)


def _serve(listener: socket.socket) -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # garbage collection in a fork would touch, and so copy, every page
    address = Path(listener.getsockname())
    try:
        with contextlib.suppress(EOFError), _Forks(listener) as server:
            server.serve_forever(_POLL_S)
    finally:
        shutil.rmtree(address.parent, ignore_errors=True)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
