"""finemoe's own trace files."""

from pathlib import Path

from finemoe.files import kind_of
from finemoe.importers.opening import Head
from finemoe.traces import RoutingTrace

NAME = "finemoe"


def matches(head: Head) -> bool:
    """Whether finemoe wrote it."""
    return b'"finemoe"' in head.start[:4096] and kind_of(head.path) != ""


def load(path: Path) -> RoutingTrace:
    """The trace.

    Raises:
        FinemoeError: it is damaged, or of another kind or version.
    """
    return RoutingTrace.load(path)
