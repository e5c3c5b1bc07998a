"""Copy one file from a server to the disk: resumable, and never used before its size and checksum are known to be right.

`requests` does the transfer: proxies, certificates, redirects, and the check that a body has its announced length. `tenacity`
does the repetitions. Resuming is done here: pooch and fsspec begin again, and the hub's client, which does resume, refuses every
address while `HF_HUB_OFFLINE` is set and gives up at the first 5xx.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from finemoe.errors import FinemoeError, first_line
from finemoe.units import format_bytes

PART = ".part"  # what has arrived so far
WRONG = ".wrong"  # what arrived whole and is not the file
ATTEMPTS = 5  # in a row that bring nothing new
TIMEOUTS_S = (10.0, 60.0)  # to connect, and between two pieces
_PIECE_BYTES = 1 << 16  # what a broken connection may lose
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_NO_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.TooManyRedirects)
_ELSEWHERE = "free some space, or set `external` to a folder elsewhere"
Say = Callable[[str], None]


class Interruption(Exception):
    """The transfer broke off for a reason that may pass."""


@dataclass(frozen=True)
class Source:
    """One file on a server.

    Attributes:
        name: for messages. url: its address. bytes: its size; 0 if unknown. sha256: its checksum; "" if unknown.
        stated_by: who states the size and the checksum.
    """

    name: str
    url: str
    bytes: int = 0
    sha256: str = ""
    stated_by: str = "data/external.yaml"


def download(source: Source, path: Path, say: Say = print, longest_wait_s: float = 30.0) -> str:
    """Copy a file, continuing where an earlier copy stopped.

    What has arrived is in `path` + ".part" until it is whole and right. It is continued only if a checksum will prove the result.

    Args:
        path: where to write the file. say: takes a line about each repetition. longest_wait_s: bound on the pause between two.
    Returns:
        The file's sha256.
    Raises:
        FinemoeError: the server does not have the file, cannot be reached, or the disk has no space; a later call continues. Or
            the file has another size or checksum than stated: then it is kept as `path` + ".wrong" and never used.
    """
    part = path.with_name(path.name + PART)
    with _clear(source, part), _only_one(part, source) as file:
        _discard_useless(file, source)
        _require_space(source, file, source.bytes - _size(file))
        attempts = Retrying(
            stop=_NothingNew(file),
            wait=wait_exponential(max=longest_wait_s),
            retry=retry_if_exception_type(Interruption),
            before_sleep=lambda state: say(_repetition(source, state)),
            reraise=True,
        )
        attempts(_continue, source, file)
        os.fsync(file.fileno())
        digest = _verified(source, part)
        os.replace(part, path)
        path.with_name(path.name + WRONG).unlink(missing_ok=True)
    return digest


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _NothingNew:
    """When to give up: several attempts in a row brought no new byte. A large file may break off more often than that."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size, self._failures = file, _size(file), 0

    def __call__(self, state: RetryCallState) -> bool:
        size = _size(self._file)
        self._failures = 0 if size > self._size else self._failures + 1
        self._size = max(size, self._size)
        return self._failures >= ATTEMPTS


@contextmanager
def _only_one(part: Path, source: Source) -> Iterator[IO[bytes]]:
    """The partial file, which no other process may fill at the same time; removed if it stayed empty."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part, source) as file:
        try:
            yield file
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()


def _locked(part: Path, source: Source) -> IO[bytes]:
    while True:
        file = part.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Before the lock, another process may have ended and renamed the file: then this is not the partial file any more.
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise FinemoeError(f"{source.name}: another process is fetching {part}; wait until it ends") from error
        except FileNotFoundError:
            pass
        file.close()


@contextmanager
def _clear(source: Source, part: Path) -> Iterator[None]:
    """Every failure of the network or the disk as one line."""
    try:
        yield
    except Interruption as error:
        raise FinemoeError(
            f"{source.name}: {source.url}: {error}, {ATTEMPTS} times; check the network{_kept(source, part)}"
        ) from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise FinemoeError(
            f"{source.name}: cannot be written to {part.parent} ({reason}); {_ELSEWHERE}{_kept(source, part)}"
        ) from error


def _kept(source: Source, part: Path) -> str:
    size = part.stat().st_size if source.sha256 and part.exists() else 0
    return f"; {format_bytes(size)} are kept as {part.name}, and the next fetch continues" if size else ""


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _discard_useless(file: IO[bytes], source: Source) -> None:
    """Empty a partial file that cannot be the beginning of this one, or that no checksum could prove right."""
    if not source.sha256 or (source.bytes and _size(file) > source.bytes):
        file.truncate(0)


def _require_space(source: Source, file: IO[bytes], missing: int) -> None:
    folder = Path(file.name).parent
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise FinemoeError(
            f"{source.name}: {format_bytes(missing)} are missing, but {folder} has {format_bytes(free)} free; nothing was"
            f" fetched; {_ELSEWHERE}"
        )


def _continue(source: Source, file: IO[bytes]) -> None:
    """Append what is missing; begin again where the server sends the whole file."""
    present = _size(file)
    if source.bytes and present == source.bytes:
        return
    # Without "identity" a server may compress the body, and a range would be one of the compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={present}-"} if present else {})
    try:
        with requests.get(source.url, headers=headers, stream=True, timeout=TIMEOUTS_S) as answer:
            _check_answer(source, answer, file, present)
            if answer.headers.get("Content-Length") == str(source.bytes):
                # The body is the file itself: a .gz file that the server calls a compressed body must stay as it is.
                answer.raw.headers.discard("Content-Encoding")
            for piece in answer.iter_content(_PIECE_BYTES):
                file.write(piece)
                file.flush()
                if 0 < source.bytes < _size(file):
                    return  # the size is wrong already, and such a body may have no end
    except _NO_ADDRESS as error:
        raise FinemoeError(
            f"{source.name}: {source.url}: {first_line(error).rstrip('.')}; the address or the mirror is wrong"
        ) from error
    except requests.RequestException as error:
        raise Interruption(_reason(error)) from error
    if _size(file) < source.bytes and not _states_end(answer):
        raise Interruption("the connection broke off")


def _states_end(answer: requests.Response) -> bool:
    """Whether `requests` notices that a body broke off; it cannot if only the end of the connection marks the end."""
    return "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers


def _check_answer(source: Source, answer: requests.Response, file: IO[bytes], present: int) -> None:
    """Empty the partial file unless the answer continues it.

    Raises:
        Interruption: the server is busy, or the partial file is not part of what it has.
        FinemoeError: it does not have the file, or has one of another size.
    """
    status = answer.status_code
    if status in _TRANSIENT:
        raise Interruption(f"the server answers {status} {answer.reason}")
    if status == 416 or (status == 206 and not _continues(answer, present)):
        file.truncate(0)
        raise Interruption("the server cannot continue the partial file, which was discarded")
    if status not in (200, 206):
        advice = "its publisher asks for a login" if status in (401, 403) else "the address or the mirror is wrong"
        raise FinemoeError(f"{source.name}: {source.url}: the server answers {status} {answer.reason}; {advice}")
    if status == 200:
        file.truncate(0)
    length = answer.headers.get("Content-Length", "")
    if length.isdigit() and "Content-Encoding" not in answer.headers:
        _check_size(source, _size(file) + int(length))
        _require_space(source, file, int(length))


def _continues(answer: requests.Response, present: int) -> bool:
    stated = answer.headers.get("Content-Range", "")
    return stated.startswith(f"bytes {present}-") and "Content-Encoding" not in answer.headers


def _check_size(source: Source, size: int) -> None:
    if source.bytes not in (0, size):
        raise FinemoeError(
            f"{source.name}: {source.url} has {size} bytes, but {source.stated_by} states {source.bytes}; nothing was fetched;"
            " the publisher or the mirror has another file"
        )


def _verified(source: Source, part: Path) -> str:
    """The checksum of the whole file; a wrong one is set aside."""
    digest, size = sha256_of(part), part.stat().st_size
    wrong = [f"size is {size} bytes, but {source.stated_by} states {source.bytes}"] if source.bytes not in (0, size) else []
    if source.sha256 and digest != source.sha256:
        wrong.append(f"sha256 is {digest}, but {source.stated_by} states {source.sha256}")
    if wrong:
        aside = part.with_name(part.name.removesuffix(PART) + WRONG)
        os.replace(part, aside)
        raise FinemoeError(f"{source.name}: {source.url}: its {' and its '.join(wrong)}; kept as {aside} and not used")
    return digest


def _repetition(source: Source, state: RetryCallState) -> str:
    reason = state.outcome.exception() if state.outcome else ""
    wait_s = state.next_action.sleep if state.next_action else 0.0
    return f"{source.name}: {reason}; attempt {state.attempt_number + 1} in {wait_s:.0f} s"


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate cannot be verified"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "the server cannot be reached" if isinstance(error, requests.ConnectionError) else first_line(error)
