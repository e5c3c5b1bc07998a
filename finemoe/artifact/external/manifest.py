"""The list of external data: publisher, revision, licence, size and checksum of each file (data/external.yaml)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from finemoe.errors import FinemoeError
from finemoe.paths import DATA
from finemoe.suggestions import suggestion

MANIFEST = DATA / "external.yaml"


@dataclass(frozen=True)
class Licence:
    """The terms of some of the data.

    Attributes:
        name: what a user accepts; an SPDX identifier where there is one. title: in words. url: where its text is.
    """

    name: str
    title: str
    url: str


@dataclass(frozen=True)
class PromptColumns:
    """Where a prompt set has its texts.

    Attributes:
        prompt: the column with the prompt: a text, a list of turns, or a conversation.
        id, topic: columns of these; "" if it has none. rows: how many prompts are kept; 0 keeps all.
    """

    prompt: str
    id: str = ""
    topic: str = ""
    rows: int = 0


@dataclass(frozen=True)
class Entry:
    """One file or data set; the header of data/external.yaml explains every field.

    Attributes:
        name: what a user asks for. bytes: of the publisher's file; 0 if unknown. sha256: "" if unknown.
    """

    name: str
    what: str
    licence: Licence
    used_by: str
    file: str = ""
    url: str = ""
    source: str = ""
    hub: str = ""
    revision: str = ""
    split: str = ""
    gated: bool = False
    bytes: int = 0
    sha256: str = ""
    prompts: PromptColumns | None = None
    routing: str = ""
    note: str = ""

    @property
    def converted(self) -> str:
        """The file made of the publisher's, below the same folder; "" if the publisher's is used as it is."""
        if self.prompts:
            return f"converted/{self.name}.jsonl"
        return f"converted/{self.name}.trace" if self.routing else ""

    @property
    def converter(self) -> str:
        """The module of this package that makes it."""
        return "prompt_sets" if self.prompts else "routing_traces"

    @property
    def result(self) -> str:
        """The file that the pipeline reads, below the folder of external data."""
        return self.converted or self.file


def read_manifest(path: Path = MANIFEST) -> dict[str, Entry]:
    """Every entry by name, in the order of the file.

    Raises:
        FinemoeError: the file is missing or not YAML, or an entry lacks a field or has an unknown one; names the entry.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FinemoeError(f"{path}: not a list of external data ({str(error).splitlines()[0]})") from error
    licences = {name: _made(Licence, path, name, keys) for name, keys in _table(path, content, "licences").items()}
    return {name: _entry(path, name, keys, licences) for name, keys in _table(path, content, "entries").items()}


def entry_named(name: str, manifest: Mapping[str, Entry]) -> Entry:
    """The entry of that name.

    Raises:
        FinemoeError: there is none; the message suggests the right name.
    """
    if name not in manifest:
        raise FinemoeError(f"no external data {name!r}; {suggestion(name, manifest)}")
    return manifest[name]


def require_accepted(entries: Iterable[Entry], accepted: Iterable[str], how: Callable[[list[str]], str]) -> None:
    """Check that the licence of every entry is accepted, before anything is fetched.

    Args:
        accepted: names of licences. how: how to accept those of these names, in words.
    Raises:
        FinemoeError: one is not; the message names every such licence with its address, and how to accept it.
    """
    refused: dict[Licence, list[str]] = {}
    for entry in entries:
        if entry.licence.name not in accepted:
            refused.setdefault(entry.licence, []).append(entry.name)
    if refused:
        terms = "; ".join(f"{one.name} ({one.url}) of {', '.join(names)}" for one, names in refused.items())
        accept = how([one.name for one in refused])
        raise FinemoeError(f"nothing was fetched: not accepted: {terms}. Read the terms, then accept them with {accept}")


def by_configuration(licences: list[str]) -> str:
    """How to accept licences for the pipeline, in words."""
    return f"--config accept_licences='[{', '.join(licences)}]', or the same in a configuration file"


def require_known(accepted: Iterable[str], manifest: Mapping[str, Entry]) -> None:
    """Check the names of accepted licences.

    Raises:
        FinemoeError: there is no such licence; the message suggests the right name.
    """
    known = sorted({entry.licence.name for entry in manifest.values()})
    for name in accepted:
        if name not in known:
            raise FinemoeError(f"no licence {name!r} among those of external data; {suggestion(name, known)}")


def _table(path: Path, content: Any, key: str) -> dict[str, Mapping[str, Any]]:
    """The entries under a key by name.

    Raises:
        FinemoeError: there are none, or one has no fields.
    """
    table = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(table, dict) or not all(isinstance(keys, Mapping) for keys in table.values()):
        raise FinemoeError(f"{path}: `{key}` is not a table of names with their fields")
    return table


def _entry(path: Path, name: str, keys: Mapping[str, Any], licences: Mapping[str, Licence]) -> Entry:
    if keys.get("licence") not in licences:
        raise FinemoeError(f"{path}: {name} has no licence of those listed: {', '.join(licences)}")
    given = dict(keys) | {"licence": licences[keys["licence"]]}
    if "prompts" in keys:
        given["prompts"] = _made(PromptColumns, path, name, keys["prompts"], named=False)
    entry = _made(Entry, path, name, given)
    if not (entry.hub and entry.revision and entry.prompts) and not (entry.file and (entry.url or entry.source)):
        raise FinemoeError(f"{path}: {name} needs a file with its url or source, or a hub id with its revision and prompts")
    for one in (str(name), str(entry.file)):
        if PurePosixPath(one).is_absolute() or ".." in PurePosixPath(one).parts:
            raise FinemoeError(f"{path}: {name}: {one} would be written outside the folder of external data")
    return entry


def _made(kind: Any, path: Path, name: str, keys: Mapping[str, Any], named: bool = True) -> Any:
    known = [one.name for one in fields(kind) if not named or one.name != "name"]
    if unknown := sorted(set(keys) - set(known)):
        raise FinemoeError(f"{path}: {name} has an unknown field {unknown[0]!r}; {suggestion(unknown[0], known)}")
    try:
        return kind(**({"name": name} if named else {}), **keys)
    except TypeError as error:
        raise FinemoeError(f"{path}: {name} lacks a field ({error})") from error
