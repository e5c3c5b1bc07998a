"""A local server with the part of the hub's interface that loading a model by its name asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def _handler(name: str, folder: Path, asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            about, files = f"api/models/{name}", f"{name}/resolve/"
            if path in (about, f"{about}/revision/main", f"{about}/revision/{REVISION}"):
                self.send(json.dumps({"id": name, "sha": REVISION, "siblings": [{"rfilename": one} for one in self.names()]}))
            elif path.startswith(f"{about}/tree/"):
                self.send(json.dumps([{"type": "file", "path": one, "size": 0, "oid": "0" * 40} for one in self.names()]))
            elif path.startswith(files) and (file := folder / path.removeprefix(files).partition("/")[2]).is_file():
                asked.append(f"{self.command} {file.name}")
                self.send(file.read_bytes())
            else:
                code = "EntryNotFound" if path.startswith((files, about)) else "RepoNotFound"
                self.send("{}", 404, **{"X-Error-Code": code, "X-Error-Message": "not here"})

        def names(self) -> list[str]:
            return sorted(path.name for path in folder.iterdir())

        def send(self, content: str | bytes, status: int = 200, **headers: str) -> None:
            body = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            named = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": REVISION, "Content-Length": str(len(body))}
            for key, value in (named | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests read `asked`."""

    return Handler


@contextmanager
def serving(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """One model, the files of a folder: the server's address, and the files asked for so far."""
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(name, folder, asked)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
