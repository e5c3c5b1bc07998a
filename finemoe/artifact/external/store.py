"""The folder of external data: what is in it, and how it gets there."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from finemoe.artifact.external.manifest import Entry
from finemoe.artifact.external.transfer import PART, Source, download, sha256_of
from finemoe.errors import FinemoeError
from finemoe.files import write_text
from finemoe.paths import DATA
from finemoe.units import format_bytes

FOLDER = DATA / "external"
MIRROR = "FINEMOE_EXTERNAL_MIRROR"
ACCEPTED = "FINEMOE_ACCEPT_LICENCES"  # names of licences, separated by spaces
_LOCK = ".sha256"  # as `sha256sum --check` reads it
_SHA256 = re.compile("[0-9a-f]{64}")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Store:
    """The folder of external data.

    Attributes:
        folder: where it is. mirror: address of a server with the same layout, which replaces every publisher's; "" asks them.
    """

    folder: Path = FOLDER
    mirror: str = ""

    def __post_init__(self) -> None:
        if self.mirror and not self.mirror.startswith(("http://", "https://")):
            raise FinemoeError(
                f"mirror {self.mirror!r} is not an address; write http://HOST or https://HOST, with a folder if needed"
            )

    def path(self, entry: Entry) -> Path:
        """The publisher's file."""
        return self.folder / entry.file

    def result(self, entry: Entry) -> Path:
        """The file that the pipeline reads."""
        return self.folder / entry.result

    def state(self, entry: Entry) -> str:
        """What is here, in a few words."""
        if self.result(entry).is_file():
            return "here"
        if not entry.file:
            return "not here"
        part = self.path(entry).with_name(self.path(entry).name + PART)
        if part.is_file():
            return f"{format_bytes(part.stat().st_size)} so far"
        return "to convert" if self.path(entry).is_file() else "not here"

    def fetch(self, entry: Entry, say: Say = print, longest_wait_s: float = 30.0) -> Path:
        """Get the publisher's file, unless it is here and right; its licence must be accepted.

        Raises:
            FinemoeError: as `download`; or the file has no public address and no mirror is set.
        """
        path = self.path(entry)
        if path.is_file():
            self._require_right(entry, path)
            return path
        source = self._source(entry)
        digest = download(source, path, say, longest_wait_s)
        write_text(_lock(path), f"{digest}  {path.name}\n")
        return path

    def convert(self, entry: Entry) -> str:
        """Make the file that the pipeline reads of the publisher's; what is read with the hub's client is fetched here.

        Returns:
            What it has, in a few words.
        Raises:
            FinemoeError: the publisher's file is not here, damaged, or has another checksum than stated.
        """
        source = None if entry.hub else self.path(entry)
        if source is not None:
            if not source.is_file():
                raise FinemoeError(f"{source}: not fetched yet; run `python -m finemoe.artifact.external fetch {entry.name}`")
            self._require_right(entry, source)
        if entry.prompts:
            from finemoe.artifact.external.prompt_sets import write_prompts

            count = write_prompts(entry, source, self.result(entry))
            return f"{count:,} prompts{self._compared(entry) if entry.hub else ''}"
        if source is not None and entry.routing:
            from finemoe.artifact.external.routing_traces import write_trace

            trace = write_trace(entry, source, self.result(entry))
            return f"{trace.num_requests:,} requests, {trace.num_rows:,} tokens"
        return ""

    def _compared(self, entry: Entry) -> str:
        """Record the checksum of what the hub's client read, and state whether it is that of the first time."""
        path = self.result(entry)
        digest, lock = sha256_of(path), _lock(path)
        if lock.is_file():
            is_same = _locked_sum(lock) == digest
            return ", as at the first fetch" if is_same else f", not as at the first fetch ({lock.name} has its checksum)"
        write_text(lock, f"{digest}  {path.name}\n")
        return ""

    def _require_right(self, entry: Entry, path: Path) -> None:
        """Check the file against the manifest, or against the first fetch."""
        stated, stated_by = self._stated(entry)
        if stated and (found := sha256_of(path)) != stated:
            raise FinemoeError(
                f"{entry.name}: sha256 of {path} is {found}, but {stated_by} states {stated}; the file is not used; remove it and"
                " fetch it again"
            )

    def _source(self, entry: Entry) -> Source:
        if not (self.mirror or entry.url):
            raise FinemoeError(
                f"{entry.name}: no publisher has this file, which is derived from {entry.source}; set a mirror that has it, or"
                f" put it at {self.path(entry)}"
            )
        url = f"{self.mirror.rstrip('/')}/{quote(entry.file)}" if self.mirror else entry.url
        stated, stated_by = self._stated(entry)
        return Source(entry.name, url, entry.bytes, stated, stated_by)

    def _stated(self, entry: Entry) -> tuple[str, str]:
        """The checksum that the file must have, "" if unknown, and what states it."""
        lock = _lock(self.path(entry))
        if entry.sha256 or not lock.is_file():
            return entry.sha256, "data/external.yaml"
        return _locked_sum(lock), lock.name


def mirror_of(configured: str = "") -> str:
    """The mirror in use: that of the configuration, or of the environment."""
    return configured or os.environ.get(MIRROR, "")


def _lock(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)


def _locked_sum(lock: Path) -> str:
    """The checksum of the first fetch.

    Raises:
        FinemoeError: the file does not have one.
    """
    words = lock.read_text(encoding="utf-8", errors="replace").split()
    if not words or not _SHA256.fullmatch(words[0]):
        raise FinemoeError(f"{lock}: has no sha256; remove it if you trust the next fetch, which writes it again")
    return words[0]
