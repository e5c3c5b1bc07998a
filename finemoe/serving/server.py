"""Runs the application with uvicorn: binds its port first, says when it is ready, and gives requests up when it stops."""

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from finemoe.errors import FinemoeError
from finemoe.serving.running import RunningRequests

_GRACE_S = 10  # how long answers to requests that were given up may take to be sent
STOPPING = "the server is stopping"


class Server(uvicorn.Server):
    """A server that gives all requests up once it is asked to stop.

    Args:
        app: the application. running: its requests.
        when_ready: called once it answers.
        log_level: uvicorn's.
    """

    def __init__(self, app: Any, running: RunningRequests, when_ready: Callable[[], None], log_level: str) -> None:
        is_logged = log_level in ("info", "debug")
        super().__init__(
            uvicorn.Config(app, lifespan="off", log_level=log_level, access_log=is_logged, timeout_graceful_shutdown=_GRACE_S)
        )
        self._running, self._when_ready = running, when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        if self.started:
            self._when_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop, as a signal asks; at a second one, without sending the answers that are left."""
        super().handle_exit(sig, frame)
        self._running.cancel_all(STOPPING)

    def stop(self) -> None:
        """Give all requests up and end."""
        self._running.cancel_all(STOPPING)
        self.should_exit = True


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of a host, not yet listening; port 0 takes a free one.

    Raises:
        FinemoeError: the host is unknown, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise FinemoeError(f"--host {host}: {error.strerror}; give a name or an address of this machine") from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((one[0], one[4]) for one in found):
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bound(family, (address[0], chosen, *address[2:])))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6 and sockets:
                continue  # localhost may name an address that this machine lacks
            for one in sockets:
                one.close()
            raise FinemoeError(f"port {port} on {host}: {_reason(error)}") from error
    return sockets


def _bound(family: int, address: Any) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sends tokens at once only if it reads "TCP"
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen()
    except BaseException:
        one.close()
        raise
    return one


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "already in use; choose another with --port, or stop the program that has it"
    if error.errno == errno.EACCES:
        return "not allowed for this user; choose a port from 1024 on"
    return str(error.strerror)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
