"""Files that are never half-written and never silently wrong.

Arrays travel in safetensors (memory-mappable, no code execution) with one JSON header that names the kind of file, its
version, and a checksum of every array; a reader refuses what it cannot vouch for in one line.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError

_HEADER = "finemoe"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success flush it to disk and rename it into place, else remove it."""
    path = Path(path)
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


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def save_arrays(path: str | Path, kind: str, version: int, arrays: Mapping[str, np.ndarray], meta: Any) -> None:
    """Write named arrays and JSON-able `meta` to `path`, atomically; same content, same bytes.

    Args:
        kind: what the file is, e.g. "routing-trace"; checked on loading.
        version: format version of that kind.
    """
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {
        "kind": kind,
        "version": version,
        "checksums": {name: _checksum(array) for name, array in contiguous.items()},
        "meta": meta,
    }
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={_HEADER: json.dumps(header, sort_keys=True)})


def load_arrays(path: str | Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], Any]:
    """Read what `save_arrays` wrote.

    Raises:
        FinemoeError: the file is missing, truncated, of another kind or version, or its content does not match its checksums.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FinemoeError(f"{path}: no such {kind} file; check the path or make it first")
    try:
        with safe_open(path, framework="numpy") as file:
            header = _header(file.metadata(), path, kind, version)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file itself cannot be iterated
    except (SafetensorError, OSError) as error:
        raise FinemoeError(f"{path}: truncated or not a {kind} file ({error}); make it again") from error
    for name, expected in header["checksums"].items():
        if name not in arrays or _checksum(arrays[name]) != expected:
            raise FinemoeError(f"{path}: array {name!r} does not match its checksum; the file is damaged, make it again")
    return arrays, header["meta"]


def _header(metadata: Mapping[str, str] | None, path: Path, kind: str, version: int) -> dict[str, Any]:
    if not metadata or _HEADER not in metadata:
        raise FinemoeError(f"{path}: a safetensors file, but not one written by finemoe; expected a {kind}")
    header: dict[str, Any] = json.loads(metadata[_HEADER])
    if header["kind"] != kind:
        raise FinemoeError(f"{path}: holds a {header['kind']}, expected {kind}")
    if header["version"] != version:
        raise FinemoeError(f"{path}: {kind} format {header['version']}, this finemoe reads format {version}; make the file again")
    return header


def _checksum(array: np.ndarray) -> str:
    from hashlib import blake2b

    return blake2b(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, digest_size=16).hexdigest()
