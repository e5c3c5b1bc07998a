"""finemoe's own trace files."""

from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.files import kind_of
from finemoe.importers.opening import Head
from finemoe.importers.routing import Options
from finemoe.traces import RoutingTrace

NAME = "finemoe"


def matches(head: Head) -> bool:
    """Whether finemoe wrote the file."""
    return b'"finemoe"' in head.start[:4096] and kind_of(head.path) != ""


def load(path: Path, options: Options) -> RoutingTrace:
    """Load the trace.

    Raises:
        FinemoeError: it is damaged, of another kind or version, or has another number of experts than the given one.
    """
    trace = RoutingTrace.load(path)
    if options.num_experts not in (None, trace.num_experts):
        raise FinemoeError(f"states {trace.num_experts} experts, not the given {options.num_experts}; leave the number out")
    return trace
