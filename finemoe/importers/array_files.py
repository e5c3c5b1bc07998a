"""Arrays in .npy files and in members of .npz archives, read in blocks of rows: wide types are never in memory as a whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np

from finemoe.errors import FinemoeError, first_line
from finemoe.importers.opening import open_binary
from finemoe.importers.routing import blocks

MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class StoredArray:
    """An array in a file. name: the archive member without .npy, or "". shape, dtype: from its header."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    opened: Callable[[], Any]

    def read(self) -> np.ndarray:
        """Read the whole array.

        Raises:
            FinemoeError: it holds Python objects, which are not loaded.
        """
        with self.opened() as file:
            return array_in(file, self.name)

    def rows(self) -> Iterator[np.ndarray]:
        """Its rows in blocks of about a million values."""
        if len(self.shape) < 2:
            yield self.read()
            return
        with self.opened() as file:
            _, is_fortran, dtype = _header(file, self.name)
            if is_fortran:
                raise FinemoeError(f"array {self.name!r} is in Fortran order; save it with np.ascontiguousarray")
            row_bytes = dtype.itemsize * int(np.prod(self.shape[1:]))
            for rows in blocks(self.shape[0], row_bytes // dtype.itemsize):
                wanted = (rows.stop - rows.start) * row_bytes
                content = file.read(wanted)
                if len(content) != wanted:
                    raise FinemoeError(f"array {self.name!r} ends before row {self.shape[0]}; the file is truncated")
                yield np.frombuffer(content, dtype).reshape(-1, *self.shape[1:])

    def compact(self, dtype: type) -> np.ndarray:
        """Read the whole array in a narrower type; ids that do not fit are refused.

        Raises:
            FinemoeError: names the token.
        """
        whole: np.ndarray = np.empty(self.shape, dtype)
        begin = 0
        for block in self.rows():
            if np.issubdtype(dtype, np.integer):
                _require_ids(block, begin)
            with np.errstate(over="ignore"):
                whole[begin : begin + len(block)] = block
            begin += len(block)
        return whole


def _require_ids(block: np.ndarray, first_row: int) -> None:
    wrong = (block < 0) | (block > np.iinfo(np.uint16).max)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(block), -1).any(axis=1)))
        value = block[row][wrong[row]].reshape(-1)[0]
        raise FinemoeError(f"token {first_row + row}: expert {value}; ids go from 0 to J - 1, so this token was not recorded")


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of an .npz, or the one of an .npy under the name "", in the order of the file.

    Raises:
        FinemoeError: an array holds Python objects.
    """
    with open_binary(path) as file:
        if file.read(len(MAGIC)) == MAGIC:
            return {"": _described("", lambda: open_binary(path))}
    with _archive(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    names = {member: member.removesuffix(".npy") for member in members}
    return {name: _described(name, partial(_member, path, member)) for member, name in names.items()}


@contextmanager
def _archive(path: Path) -> Iterator[ZipFile]:
    with open_binary(path) as file, ZipFile(file) as archive:
        yield archive


@contextmanager
def _member(path: Path, member: str) -> Iterator[Any]:
    with _archive(path) as archive, archive.open(member) as file:
        yield file


def _described(name: str, opened: Callable[[], Any]) -> StoredArray:
    with opened() as file:
        shape, _, dtype = _header(file, name)
    return StoredArray(name, shape, dtype, opened)


def _header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = reader(file)
    except (ValueError, TypeError, SyntaxError, TokenError) as error:
        raise FinemoeError(f"array {name!r} is damaged ({first_line(error)}); create the file again") from error
    if dtype.hasobject:
        raise FinemoeError(f"array {name!r} holds Python objects, which are not loaded; save one array of numbers per request")
    return shape, is_fortran, dtype


def array_in(file: BinaryIO | Any, name: str = "") -> np.ndarray:
    """The array in an open .npy file.

    Raises:
        FinemoeError: it is not an .npy file, or holds Python objects.
    """
    try:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (ValueError, TypeError, SyntaxError, TokenError) as error:
        raise FinemoeError(f"array {name!r} is damaged or holds Python objects ({first_line(error)})") from error
