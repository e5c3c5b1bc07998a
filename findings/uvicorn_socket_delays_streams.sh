#!/usr/bin/env bash
# uvicorn 0.54.0 (Python 3.11, Linux): a server that is given the socket of uvicorn's own `Config.bind_socket` sends small pieces late. asyncio
# switches Nagle's algorithm off for connections, but only where the socket names its protocol, `IPPROTO_TCP`; `bind_socket` makes one that
# names none, and what it accepts inherits that. A server that binds by itself (`Server.serve()` without sockets) has no delay. With the socket,
# a second small write waits until the client acknowledges the first, up to 40 ms: in an answer that streams tokens, it is felt. Cure: make
# the socket with `socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)`.
# Needs Python 3.10 to 3.14. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check uvicorn==0.54.0

cat >"$folder/nodelay.py" <<'PY'
import asyncio
import socket
import sys

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

seen = []


class Protocol(H11Protocol):
    """Notes whether the connection sends small pieces at once."""

    def connection_made(self, transport):
        connection = transport.get_extra_info("socket")
        seen.append((connection.proto, bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))))
        super().connection_made(transport)


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def one_request(make_sockets):
    config = uvicorn.Config(app, port=0, http=Protocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(make_sockets(config)))
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    server.should_exit = True
    await serving
    return seen.pop()


def named(config):
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    one.bind(("127.0.0.1", 0))
    return [one]


ways = {"its own": lambda config: None, "bind_socket": lambda config: [config.bind_socket()], "named": named}
found = {way: asyncio.run(one_request(make)) for way, make in ways.items()}
for way, (protocol, at_once) in found.items():
    print(f"{way}: protocol {protocol}, sends at once: {at_once}")
tcp = socket.IPPROTO_TCP
sys.exit(0 if found == {"its own": (tcp, True), "bind_socket": (0, False), "named": (tcp, True)} else 1)
PY
"$folder/venv/bin/python" "$folder/nodelay.py" ||
    { echo "changed; it was: connections of a socket of bind_socket delay small pieces, others do not" && exit 1; }
