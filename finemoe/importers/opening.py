"""Open files, gzipped or not, and report errors in one line: the file, the position, what is wrong, and what to do."""

import csv
import gzip
import io
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

from finemoe.errors import FinemoeError, first_line

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_HEAD_BYTES = 1 << 16
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    BadZipFile,
    zlib.error,
    csv.Error,
    struct.error,
    RuntimeError,  # zipfile's, for archives that are encrypted or compressed in a way it cannot read; json's, for deep nesting
)


def open_binary(path: Path) -> BinaryIO:
    """The file's content from its start; gzip is detected by content and decompressed."""
    with path.open("rb") as file:
        is_packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if is_packed else path.open("rb")  # type: ignore[return-value]


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Like `open_binary`, decoded as UTF-8; a byte order mark is dropped, and line ends stay unchanged, as `csv` needs them."""
    with open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Prefix errors with the file's name."""
    try:
        yield
    except FinemoeError as error:
        text = str(error)
        raise FinemoeError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from error
    except _UNREADABLE as error:
        raise FinemoeError(f"{path}: damaged, or of another format ({first_line(error)}); create it again") from error


def delimiter_of(header: str) -> str:
    """The column delimiter of a table, from its first line: a comma, a tab or a semicolon."""
    return max(",\t;", key=header.count)


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Every JSON value of a file with its position: each line of JSON lines, or the items of one document, or the document.

    Raises:
        FinemoeError: a line or the document is not JSON; names the line.
    """
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
        try:
            value = json.loads(first)
        except json.JSONDecodeError as error:
            document = _document(first + file.read(), error)
            yield from _items(document)
            return
        rest = enumerate(file, 2)
        following = next(((number, line) for number, line in rest if line.strip()), None)
        if following is None:
            yield from _items(value)
            return
        yield "line 1", value
        yield f"line {following[0]}", _parsed(*following)
        for number, line in rest:
            if line.strip():
                yield f"line {number}", _parsed(number, line)


def _document(text: str, of_first_line: json.JSONDecodeError) -> Any:
    """One document over several lines; if it does not parse either, report the first invalid line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = error.lineno if error.lineno > 1 else of_first_line.lineno
        raise FinemoeError(f"line {line} is not JSON ({error.msg}); write one JSON object a line, or one document") from error


def _parsed(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise FinemoeError(f"line {number} is not JSON ({error.msg}); correct it or leave it out") from error


def _items(document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, list):
        yield from ((f"item {number}", value) for number, value in enumerate(document, 1))
    else:
        yield "the document", document


class Head:
    """What identifies a file's format: its name, its first bytes (decompressed), and what they contain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_binary(path) as file:
            self.start: bytes = file.read(_HEAD_BYTES)

    @property
    def is_zip(self) -> bool:
        return self.start.startswith(_ZIP)

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Names of the members of a zip archive."""
        if not self.is_zip:
            return ()
        with named(self.path), open_binary(self.path) as file, ZipFile(file) as archive:
            return tuple(archive.namelist())

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The first lines of a text file, without comments and empty lines; none for other files."""
        try:
            text = self.start.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if len(self.start) - error.start > 4 or len(self.start) < _HEAD_BYTES:  # not just a character cut at the end
                return ()
            text = self.start[: error.start].decode("utf-8-sig")
        if "\0" in text:
            return ()
        return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Column names of a CSV, unchanged, or none."""
        if not self.lines or self.is_json:
            return ()
        return tuple(next(csv.reader([self.lines[0]], delimiter=delimiter_of(self.lines[0])), ()))

    @property
    def is_json(self) -> bool:
        return bool(self.lines) and self.lines[0][0] in "{["

    @cached_property
    def first_value(self) -> Any:
        """The first JSON value (for a document that is a list, its first item), or None."""
        if not self.is_json:
            return None
        with named(self.path):
            return next((value for _, value in json_values(self.path)), None)
