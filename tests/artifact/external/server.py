"""A local server of files: it breaks off, refuses ranges, is busy or redirects as a test asks, and logs what it was asked for."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    """What a server has and how it behaves.

    Attributes:
        content: bytes by path. has_ranges: whether it continues a file. encodes: whether it compresses bodies, asked or not.
        states_length: whether it states the length of bodies. calls_packed: whether it says that bodies are compressed, and
            leaves them as they are.
        breaks: by path, after how many bytes of its next answers it breaks off. busy: statuses of the next answers.
        moved: where a path is now. log: path, requested range and status of every answer.
    """

    content: dict[str, bytes]
    has_ranges: bool = True
    encodes: bool = False
    states_length: bool = True
    calls_packed: bool = False
    breaks: dict[str, list[int]] = field(default_factory=dict)
    busy: list[int] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    @property
    def ranges(self) -> list[str]:
        """The ranges asked for, in order; "" is the whole file."""
        return [wanted for _, wanted, _ in self.log]

    @property
    def statuses(self) -> list[int]:
        """Statuses of the answers, in order."""
        return [status for _, _, status in self.log]


def _handler(files: Files) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, wanted = self.path.split("?")[0].lstrip("/"), self.headers.get("Range", "")
            if files.busy:
                self.answer(files.busy.pop(0), wanted)
            elif path in files.moved:
                self.answer(302, wanted, Location=files.moved[path])
            elif path not in files.content:
                self.answer(404, wanted)
            else:
                self.send_file(path, wanted)

        def send_file(self, path: str, wanted: str) -> None:
            body = files.content[path]
            if files.encodes:
                body = gzip.compress(body)
                self.answer(200, wanted, len(body), **{"Content-Encoding": "gzip"})
            elif wanted and files.has_ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.answer(416, wanted)
                    return
                stated = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
                self.answer(206, wanted, len(body), **{"Content-Range": stated})
            else:
                self.answer(200, wanted, len(body))
            limits = files.breaks.get(path, [])
            self.wfile.write(body[: limits.pop(0)] if limits else body)

        def answer(self, status: int, wanted: str, length: int = 0, **headers: str) -> None:
            files.log.append((self.path, wanted, status))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if files.calls_packed and status < 300:
                self.send_header("Content-Encoding", "gzip")
            if files.states_length:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Tests read `files.log`."""

    return Handler


@contextmanager
def serving(files: Files) -> Iterator[Files]:
    """The files at `files.url`, until the end of the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(files)) as server:
        files.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield files
        finally:
            server.shutdown()
            thread.join()
