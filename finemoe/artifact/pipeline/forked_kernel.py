"""Run a notebook's kernel as a fork of the process that runs the notebook, so that the kernel inherits its imports.

A fork is only safe in a process without threads, and the runner has threads by the time a kernel is requested. The kernel's
process is therefore forked first and learns later which kernel to become.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner


class WaitingKernel:
    """A fork of this process that waits for the order to become a kernel. If the order never comes, it ends with this process.

    Args:
        connection: a socket that the fork closes, so that the connection ends with this process.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.stdin = self.stdout = self.stderr = None  # as in `subprocess.Popen`, which a provisioner expects
        read_end, self._write_end = os.pipe()
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.close(self._write_end)
            connection.close()
            _be_kernel(read_end)
        os.close(read_end)

    def become(self, command: list[str], environment: dict[str, str], folder: str) -> None:
        """Start the kernel that a command line would start.

        Args:
            command: an interpreter, its flags, the name of the kernel's module, and the kernel's own arguments.
            environment: environment variables of the kernel.
            folder: working directory of the kernel.
        """
        order = {"arguments": command[command.index("ipykernel_launcher") + 1 :], "environment": environment, "folder": folder}
        with os.fdopen(self._write_end, "w", encoding="utf-8") as pipe:
            json.dump(order, pipe)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal if it is still running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to terminate."""
        self.send_signal(signal.SIGTERM)


class ForkProvisioner(LocalProvisioner):
    """Uses a waiting kernel whenever a kernel manager launches one.

    Args:
        kernel: the waiting kernel.
    """

    def __init__(self, kernel: WaitingKernel, **traits: Any) -> None:
        super().__init__(**traits)
        self._kernel = kernel

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Turn the waiting kernel into the one that was requested."""
        self.cwd = kwargs.get("cwd") or Path.cwd()  # the current folder, which has changed since the fork
        self._kernel.become(cmd, kwargs["env"], str(self.cwd))
        self.process, self.pid = self._kernel, self._kernel.pid  # type: ignore[assignment]
        return self.connection_info


def _be_kernel(read_end: int) -> None:
    """Wait for the order and run the kernel; never returns."""
    status = 1
    try:
        with os.fdopen(read_end, encoding="utf-8") as pipe:
            order = json.loads(pipe.read() or "null")
        if order is not None:
            _run_kernel(**order)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # skips the exit handlers inherited from the forked process


def _run_kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    IPKernelApp.launch_instance(arguments)
