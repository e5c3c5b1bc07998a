"""A notebook's kernel as a fork of the process that runs the notebook: whatever that has imported, the kernel need not.

A fork wants a process without threads, and by the time a kernel is asked for the runner has some. So the kernel's process is made
first and told later which kernel to be.
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
    """A fork of this process that waits to be told which kernel it is; where it never is, it ends with this process.

    Args:
        connection: what the kernel closes, so that it is over with this process.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.stdin = self.stdout = self.stderr = None  # as of `subprocess.Popen`, which a provisioner expects
        hears, self._tells = os.pipe()
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.close(self._tells)
            connection.close()
            _be_kernel(hears)
        os.close(hears)

    def become(self, command: list[str], environment: dict[str, str], folder: str) -> None:
        """Start the kernel that a command line would start.

        Args:
            command: an interpreter, its flags, and the kernel's own arguments after the name of its module.
        """
        order = {"arguments": command[command.index("ipykernel_launcher") + 1 :], "environment": environment, "folder": folder}
        with os.fdopen(self._tells, "w", encoding="utf-8") as pipe:
            json.dump(order, pipe)

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class ForkProvisioner(LocalProvisioner):
    """Makes a waiting kernel the one that a kernel manager asks for.

    Args:
        kernel: the waiting one.
    """

    def __init__(self, kernel: WaitingKernel, **traits: Any) -> None:
        super().__init__(**traits)
        self._kernel = kernel

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Say what it is to be."""
        self.cwd = kwargs.get("cwd") or Path.cwd()  # as of now; when the kernel was forked it was another
        self._kernel.become(cmd, kwargs["env"], str(self.cwd))
        self.process, self.pid = self._kernel, self._kernel.pid  # type: ignore[assignment]
        return self.connection_info


def _be_kernel(hears: int) -> None:
    """Wait for the order and run the kernel; never returns."""
    status = 1
    try:
        with os.fdopen(hears, encoding="utf-8") as pipe:
            order = json.loads(pipe.read() or "null")
        if order is not None:
            _run_kernel(**order)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # whatever the forked process would do at its end is its own business


def _run_kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    IPKernelApp.launch_instance(arguments)
