"""finemoe's own trace files."""

from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.files import kind_of
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options
from finemoe.traces import RoutingTrace

NAME = "finemoe"


def matches(head: Head) -> bool:
    """Whether finemoe wrote it."""
    return b'"finemoe"' in head.start[:4096] and kind_of(head.path) != ""


def load(path: Path, options: Options) -> RoutingTrace:
    """The trace.

    Raises:
        FinemoeError: it is damaged, or of another kind or version, or has another number of experts than was given.
    """
    trace = RoutingTrace.load(path)
    if options.num_experts not in (None, trace.num_experts):
        raise FinemoeError(f"it states {trace.num_experts} experts, not the {options.num_experts} given; leave the number out")
    return trace
