"""`python -m finemoe.artifact.external`: list external data, show their licences, fetch and convert them."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from finemoe.artifact.external.manifest import (
    MANIFEST,
    Entry,
    Licence,
    by_configuration,
    entry_named,
    read_manifest,
    require_accepted,
    require_known,
)
from finemoe.artifact.external.store import ACCEPTED, FOLDER, MIRROR, Store, mirror_of
from finemoe.errors import FinemoeError, one_line_for_bad_input
from finemoe.units import format_bytes

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Folder = Annotated[Path, typer.Option(help="Folder of external data.")]
Mirror = Annotated[str, typer.Option(help=f"Address of a server with the layout of this folder; default: ${MIRROR}.")]
Manifest = Annotated[Path, typer.Option(help="The list of external data.")]
Accepted = Annotated[
    list[str] | None, typer.Option("--accept", envvar=ACCEPTED, help="Name of a licence that you accept; repeatable.")
]
Names = Annotated[list[str], typer.Argument(help="Names from `list`.")]


@app.callback()
def main() -> None:
    """Fetch external data, which is never part of the project."""
    sys.excepthook = one_line_for_bad_input


@app.command("list")
def list_(folder: Folder = FOLDER, manifest: Manifest = MANIFEST) -> None:
    """Print every entry: its size, its licence, and whether it is here."""
    store = Store(folder)
    width = min(120, shutil.get_terminal_size().columns)
    typer.echo(f"{'name':<24}{'size':>10}  {'licence':<15}state")
    for entry in read_manifest(manifest).values():
        size = format_bytes(entry.bytes) if entry.bytes else "unknown"
        typer.echo(f"{entry.name:<24}{size:>10}  {entry.licence.name:<15}{store.state(entry)}")
        typer.echo(fill(entry.what, width, initial_indent="  ", subsequent_indent="  "))


@app.command()
def licences(manifest: Manifest = MANIFEST) -> None:
    """Print every licence with its address and the data under it."""
    _print_licences(read_manifest(manifest).values())


@app.command()
def fetch(
    names: Names, accept: Accepted = None, folder: Folder = FOLDER, mirror: Mirror = "", manifest: Manifest = MANIFEST
) -> None:
    """Fetch data whose licences you accept; a broken transfer continues where it stopped."""
    known = read_manifest(manifest)
    require_known(accept or [], known)
    entries = [entry_named(name, known) for name in names]
    require_accepted(entries, accept or [], _by_option)
    store = Store(folder, mirror_of(mirror))
    for entry in entries:
        if entry.file:
            path = store.fetch(entry, typer.echo)
            typer.echo(f"{entry.name}: {path} ({format_bytes(path.stat().st_size)}, {entry.licence.name})")
        else:
            typer.echo(f"{entry.name}: `convert` reads it from the hub")


@app.command()
def convert(names: Names, accept: Accepted = None, folder: Folder = FOLDER, manifest: Manifest = MANIFEST) -> None:
    """Make traces and prompt sets of fetched data, and read those that only the hub has."""
    known = read_manifest(manifest)
    require_known(accept or [], known)
    entries = [entry_named(name, known) for name in names]
    require_accepted([entry for entry in entries if entry.hub], accept or [], _by_option)
    store = Store(folder)
    for entry in entries:
        made = store.convert(entry)
        typer.echo(f"{entry.name}: {store.result(entry)}" + (f" ({made})" if made else ", as published"))


@app.command()
def summary(accept: Accepted = None, folder: Folder = FOLDER, manifest: Manifest = MANIFEST) -> None:
    """State what is here and what was left out; fails if no licence is accepted."""
    known = read_manifest(manifest)
    accept = accept or []
    require_known(accept, known)
    if not accept:
        _print_licences(known.values())
        names = list(dict.fromkeys(entry.licence.name for entry in known.values()))
        how = by_configuration(names)
        raise FinemoeError(f"no licence is accepted, so nothing was fetched; accept those you agree to with {how}")
    store = Store(folder)
    here = [entry.name for entry in known.values() if store.result(entry).is_file()]
    left = [f"{entry.name} ({_why(entry, accept)})" for entry in known.values() if entry.name not in here]
    typer.echo(f"{len(here)} of {len(known)} entries are in {folder}: {', '.join(here) or 'none'}")
    if left:
        typer.echo(f"left out: {', '.join(left)}")


def _print_licences(entries: Iterable[Entry]) -> None:
    under: dict[Licence, list[str]] = {}
    for entry in entries:
        under.setdefault(entry.licence, []).append(entry.name)
    width = min(120, shutil.get_terminal_size().columns)
    for licence, names in under.items():
        typer.echo(fill(f"{licence.name}: {licence.title}", width, subsequent_indent="  "))
        typer.echo(f"  {licence.url}")
        typer.echo(fill(", ".join(names), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


def _why(entry: Entry, accepted: Iterable[str]) -> str:
    if entry.licence.name not in accepted:
        return f"licence {entry.licence.name} is not accepted"
    return "not fetched" if entry.url or entry.hub else "only from a mirror"


def _by_option(licences: list[str]) -> str:
    return " ".join(f"--accept {name}" for name in licences)


if __name__ == "__main__":
    sys.excepthook = one_line_for_bad_input
    try:
        app()
    except FinemoeError as error:
        sys.exit(f"finemoe: {error}")
