"""Prompt sets of others as JSONL that `finemoe.workloads` reads: id, prompt, topic.

`datasets` reads the publisher's form, from the hub or from a fetched file. Of a conversation, the user's first turn is kept. A
prompt that occurred before is left out, so that no served prompt is in the history too; so are empty prompts, and those too long
for the miniatures, which have 1,024 positions.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from finemoe.artifact.external.manifest import Entry, PromptColumns
from finemoe.errors import FinemoeError, first_line
from finemoe.extras import module_of_extra
from finemoe.files import atomic_path

LONGEST = 1500  # characters
_USERS = ("user", "human")


def write_prompts(entry: Entry, source: Path | None, path: Path) -> int:
    """Write a prompt set as JSONL.

    Args:
        source: the publisher's file; None reads `entry.hub` with the hub's client, row by row.
        path: the file to write.
    Returns:
        Number of prompts.
    Raises:
        FinemoeError: the source cannot be read, asks for a login, lacks a column, or has no prompt.
    """
    columns = entry.prompts
    if columns is None:
        raise FinemoeError(f"{entry.name} is not a prompt set")
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for row in islice(prompts_of(_rows(entry, source), columns, entry.name), columns.rows or None):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise FinemoeError(f"{entry.name}: no row has a prompt in column {columns.prompt!r}")
    return count


def prompts_of(rows: Iterable[Mapping[str, Any]], columns: PromptColumns, name: str) -> Iterator[dict[str, str]]:
    """Rows with id, prompt, topic, in their order.

    Args:
        name: of the set, for ids and messages.
    Raises:
        FinemoeError: a row lacks a column.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if missing := [one for one in (columns.prompt, columns.id, columns.topic) if one and one not in row]:
            raise FinemoeError(f"{name}: row {number + 1} has no column {missing[0]!r}; its columns are {sorted(row)}")
        prompt = first_turn(row[columns.prompt])
        if 0 < len(prompt) <= LONGEST and prompt not in seen:
            seen.add(prompt)
            id = row[columns.id] if columns.id else f"{name}-{number}"
            yield {"id": str(id), "prompt": prompt, "topic": str(row[columns.topic]) if columns.topic else ""}


def first_turn(value: Any) -> str:
    """The first text of the user: of a text, of a list of texts, or of a list of messages with `role` or `from`."""
    if isinstance(value, str):
        return value.strip()
    for turn in value or ():
        if isinstance(turn, str):
            return turn.strip()
        if turn.get("role", turn.get("from")) in _USERS:
            return str(turn.get("content", turn.get("value")) or "").strip()
    return ""


def _rows(entry: Entry, source: Path | None) -> Iterator[Mapping[str, Any]]:
    datasets = module_of_extra("datasets", f"reading {entry.name}")
    try:
        # Streamed: the hub's client then reads only as far as rows are taken, and writes no second copy into its own folder.
        if source is None:
            yield from datasets.load_dataset(entry.hub, revision=entry.revision, split=entry.split, streaming=True)
        else:
            yield from datasets.load_dataset("json", data_files=str(source), split="train", streaming=True)
    except FinemoeError:
        raise
    except Exception as error:  # the client raises many kinds of errors, which are handled alike
        raise FinemoeError(_reason(entry, source, error)) from error


def _reason(entry: Entry, source: Path | None, error: Exception) -> str:
    if source is not None:
        return f"{source}: {entry.name} cannot be read ({first_line(error)}); fetch it again"
    if entry.gated and "gated" in str(error).lower():
        login = f"agree to its terms at {entry.licence.url}, then run `hf auth login` or set HF_TOKEN"
        return f"{entry.name}: {entry.hub} asks for a login: {login}"
    return f"{entry.name}: {entry.hub} cannot be fetched from the hub: {first_line(error)}"
