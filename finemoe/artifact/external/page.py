"""The list of external data as a table for data/README.md."""

import pandas as pd

from finemoe.artifact.external.manifest import Entry, read_manifest
from finemoe.artifact.markdown import pipe_table
from finemoe.units import format_bytes


def external_lines() -> str:
    """A Markdown table of every entry of data/external.yaml, with its notes."""
    entries = read_manifest().values()
    rows = [{"name": f"`{one.name}`", "data": _data(one), "used by": one.used_by, "licence": _licence(one)} for one in entries]
    return pipe_table(pd.DataFrame(rows)) + "\n"


def _data(entry: Entry) -> str:
    note = f" {entry.note}." if entry.note else ""
    return f"{entry.what}: {_source(entry)}{_checked(entry)}.{note}"


def _source(entry: Entry) -> str:
    if entry.hub:
        return f"`{entry.hub}` on the hub{', behind a login' if entry.gated else ''}"
    if not entry.url:
        return f"derived from {entry.source}; only from a mirror"
    return f"[file]({entry.url})"


def _checked(entry: Entry) -> str:
    size = f", {format_bytes(entry.bytes)}" if entry.bytes else ""
    return size if entry.sha256 or entry.hub else f"{size}, sha256 recorded at the first fetch"


def _licence(entry: Entry) -> str:
    return f"[{entry.licence.name}]({entry.licence.url})"
