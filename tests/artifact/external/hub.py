"""A local server with the part of the hub's interface that `datasets` asks for: data sets of files, some behind a login."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Data sets on a server.

    Attributes:
        sets: files by name, by the id of the data set. gated: ids of those behind a login. log: the revisions asked for.
    """

    sets: dict[str, dict[str, bytes]]
    gated: tuple[str, ...] = ()
    log: list[str] = field(default_factory=list)
    url: str = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            for name, files in hub.sets.items():
                for beginning in (f"api/datasets/{name}/revision/", f"api/datasets/{name}/tree/", f"datasets/{name}/resolve/"):
                    if path.startswith(beginning):
                        revision, _, rest = path.removeprefix(beginning).partition("/")
                        hub.log.append(revision)
                        self.answer_about(name, files, beginning.split("/")[-2], rest)
                        return
            self.refuse(404, "RepoNotFound")

        def answer_about(self, name: str, files: dict[str, bytes], what: str, rest: str) -> None:
            if what == "revision":
                self.send({"id": name, "sha": REVISION, "siblings": [{"rfilename": file} for file in files]})
            elif what == "tree":
                self.send(_listed(files, rest))
            elif name in hub.gated:
                self.refuse(401, "GatedRepo")
            elif rest not in files:
                self.refuse(404, "EntryNotFound")
            else:
                self.send_bytes(files[rest])

        def send(self, content: object) -> None:
            self.send_bytes(json.dumps(content).encode())

        def refuse(self, status: int, code: str) -> None:
            self.send_bytes(b"{}", status, **{"X-Error-Code": code, "X-Error-Message": "refused"})

        def send_bytes(self, body: bytes, status: int = 200, **headers: str) -> None:
            total = len(body)
            wanted = self.headers.get("Range")
            if wanted and status == 200:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                body = body[int(first) : int(last or total) + 1]
                status, headers["Content-Range"] = 206, f"bytes {first}-{int(first) + len(body) - 1}/{total}"
            self.send_response(status)
            headers |= {"ETag": f'"{total}"', "X-Repo-Commit": REVISION, "Content-Length": str(len(body))}
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests read `hub.log`."""

    return Handler


def _listed(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """Files and folders directly below a folder."""
    found: dict[str, dict[str, object]] = {}
    for name, content in files.items():
        parts = PurePosixPath(name).relative_to(folder or ".").parts if name.startswith(folder) else ()
        if parts:
            path = f"{folder}/{parts[0]}".lstrip("/")
            kind = "file" if len(parts) == 1 else "directory"
            found[path] = {"type": kind, "path": path, "size": len(content), "oid": "0" * 40}
    return list(found.values())


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The data sets at `hub.url`, until the end of the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
