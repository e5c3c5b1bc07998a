"""Fetched routing as traces, through finemoe's own importers."""

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, cast

from finemoe.artifact.external.manifest import Entry
from finemoe.errors import FinemoeError, first_line
from finemoe.importers.gpt_oss import load_gpt_oss
from finemoe.importers.route_trace import load_route_trace
from finemoe.traces import RoutingTrace

_EXAMPLES = ("_examples.json", "_examples.json.gz")
_PIECE_BYTES = 1 << 20


def write_trace(entry: Entry, source: Path, path: Path) -> RoutingTrace:
    """Write a fetched file's routing as a trace, and return it.

    Raises:
        FinemoeError: the file is damaged or not in its publisher's format; names file and row.
    """
    trace = READERS[entry.routing](source, entry.name)
    trace.save(path)
    return trace


def read_archive(source: Path, name: str) -> RoutingTrace:
    """The routing in the publisher's repository of gpt-oss-20b, packed; requests in the order of their paths.

    Raises:
        FinemoeError: the archive is damaged or has no routing.
    """
    with tempfile.TemporaryDirectory(dir=source.parent, prefix=f".{name}-") as folder:
        try:
            _unpack(source, Path(folder))
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, KeyError, zlib.error) as error:  # KeyError: a link to nothing
            raise FinemoeError(f"{source}: damaged, or not an archive ({first_line(error)}); fetch it again") from error
        return load_gpt_oss(folder)


def _unpack(source: Path, folder: Path) -> None:
    """The archive's files with routing, each compressed again: unpacked they are ten times as large."""
    with tarfile.open(source) as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            packed = archive.extractfile(member) if place.name.endswith(_EXAMPLES) and ".." not in place.parts else None
            if packed is not None:
                target = folder.joinpath(*place.parts[place.is_absolute() :])
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed, _written(target) as file:
                    shutil.copyfileobj(packed, file)
        while cast(IO[bytes], archive.fileobj).read(_PIECE_BYTES):  # up to the end, where the archive has its checksum
            pass


def _written(target: Path) -> IO[bytes]:
    if target.suffix == ".gz":
        return target.open("wb")
    return cast(IO[bytes], gzip.open(f"{target}.gz", "wb", compresslevel=1))


def _read_route_trace(source: Path, name: str) -> RoutingTrace:
    return load_route_trace(source, model=name)


READERS: dict[str, Callable[[Path, str], RoutingTrace]] = {"gpt-oss": read_archive, "route-trace": _read_route_trace}
