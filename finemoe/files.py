"""Read and write files that are never half-written and never silently corrupt.

Arrays are stored as safetensors (memory-mappable, no code execution). One JSON header states the kind of file, its version, and
the type, shape and checksum of every array; the header has a checksum too. A reader rejects a file that does not match them,
with a one-line error.
"""

import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finemoe.errors import FinemoeError

_HEADER = "finemoe"
_PIECE_BYTES = 1 << 20
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how the library reports a full disk, among others


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success flush it to disk and rename it into place, otherwise remove it."""
    path = Path(path)
    _require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; an existing file is replaced."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_place(path: str | Path) -> None:
    """Check that a file can be written to `path`, before the work that produces its content.

    Raises:
        FinemoeError: `path` is a folder or a device, or cannot be written.
    """
    path = Path(path)
    _require_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FinemoeError(f"{path}: cannot be written ({error.strerror}); choose another path") from error


def _require_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of anything else: a folder, or a device such as /dev/null."""
    if path.is_dir():
        raise FinemoeError(f"{path}: is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise FinemoeError(f"{path}: is not a regular file; name a file to write")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def save_arrays(path: str | Path, kind: str, version: int, arrays: Mapping[str, np.ndarray], meta: Any) -> None:
    """Write named arrays and JSON-serialisable `meta` to `path`, atomically; equal content gives equal bytes.

    Args:
        path: the file to write; an existing file is replaced.
        kind: what the file is, e.g. "routing-trace"; checked on loading.
        version: format version of that kind.
        arrays: the arrays by name.
        meta: anything that JSON can represent.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = {name: _description(array, [_bytes_of(array)]) for name, array in contiguous.items()}
    header = json.dumps({"kind": kind, "version": version, "arrays": described, "meta": meta}, sort_keys=True)
    with atomic_path(path) as temporary:
        # A single metadata entry, because the library writes several in no fixed order.
        try:
            save_file(contiguous, temporary, metadata={_HEADER: f"{_checksum([header.encode()])} {header}"})
        except SafetensorError as error:
            number = _OS_ERROR.search(str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_arrays(path: str | Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], Any]:
    """Read a file written by `save_arrays`.

    Returns:
        The arrays by name, and `meta`.
    Raises:
        FinemoeError: the file is missing, truncated, of another kind or version, or does not match its checksums.
    """
    path = Path(path)
    with _opened(path, kind, version) as (file, header):
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file itself cannot be iterated
    _verify(path, header, {name: _description(array, [_bytes_of(array)]) for name, array in arrays.items()})
    return arrays, header["meta"]


def map_arrays(path: str | Path, kind: str, version: int) -> tuple[dict[str, np.memmap], Any]:
    """Like `load_arrays`, but the arrays are read-only memory maps of the file, for files larger than memory.

    Checksums are computed by plain reads of bounded size, which leave nothing resident.
    """
    path = Path(path)
    with _opened(path, kind, version) as (_, header), path.open("rb") as file:
        arrays = {
            name: np.memmap(file, known["dtype"], "r", start, tuple(known["shape"]))
            for name, start in _starts(file).items()
            if (known := header["arrays"].get(name))
        }
        found = {name: _description(array, _pieces(file, array.offset, array.nbytes)) for name, array in arrays.items()}
    _verify(path, header, found)
    return arrays, header["meta"]


def release_pages(arrays: Iterable[np.ndarray]) -> None:
    """Free the memory behind arrays made by `map_arrays`; their pages are read from the file again on the next access."""
    for array in arrays:
        if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # missing on some systems
            array.base.madvise(mmap.MADV_DONTNEED)


def kind_of(path: str | Path) -> str:
    """The `kind` that `save_arrays` wrote into a file; "" for any other file or a missing one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            _, _, text = (file.metadata() or {}).get(_HEADER, "").partition(" ")
    except (SafetensorError, OSError):
        return ""
    return str(json.loads(text)["kind"]) if text else ""


@contextmanager
def _opened(path: Path, kind: str, version: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The safetensors file and its header; errors of the open file become one line."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise FinemoeError(f"{path}: is a folder; name a {kind} file")
    if not path.is_file():
        raise FinemoeError(f"{path}: no such {kind} file; check the path, or create the file first")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file, _header(file.metadata(), path, kind, version)
    except (SafetensorError, OSError) as error:
        raise FinemoeError(f"{path}: truncated or not a {kind} file ({error}); create it again") from error


def _header(metadata: Mapping[str, str] | None, path: Path, kind: str, version: int) -> dict[str, Any]:
    if not metadata or _HEADER not in metadata:
        raise FinemoeError(f"{path}: is a safetensors file that finemoe did not write; expected a {kind} file")
    checksum, _, text = metadata[_HEADER].partition(" ")
    if _checksum([text.encode()]) != checksum:
        raise FinemoeError(f"{path}: the header is damaged or of another version of finemoe; create the file again")
    header: dict[str, Any] = json.loads(text)
    if header["kind"] != kind:
        raise FinemoeError(f"{path}: is of kind {header['kind']}, expected {kind}")
    if header["version"] != version:
        raise FinemoeError(f"{path}: has {kind} format {header['version']}, this finemoe reads format {version}; create it again")
    return header


def _starts(file: BinaryIO) -> dict[str, int]:
    """Where each array begins in a safetensors file: after 8 bytes that hold the length of the JSON, and the JSON."""
    length = int.from_bytes(file.read(8), "little")
    layout = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in layout.items() if name != "__metadata__"}


def _verify(path: Path, header: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, known in header["arrays"].items():
        if found.get(name) != known:
            raise FinemoeError(f"{path}: array {name!r} does not match its checksum; the file is damaged, create it again")


def _description(array: np.ndarray, pieces: Iterable[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape), "checksum": _checksum(pieces)}


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def _pieces(file: BinaryIO, start: int, num_bytes: int) -> Iterator[bytes]:
    file.seek(start)
    while num_bytes > 0 and (piece := file.read(min(num_bytes, _PIECE_BYTES))):
        yield piece
        num_bytes -= len(piece)


def _checksum(pieces: Iterable[Any]) -> str:
    from hashlib import blake2b

    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
