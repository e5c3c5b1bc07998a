"""Prompt sets: two embedded genres that stand in for the paper's datasets, or any dataset by path or hub id (DESIGN 7).

`questions` (short, many topics) stands in for LMSYS-Chat-1M, `dialogues` (multi-turn tasks) for ShareGPT. Requests are split 7:3
into "history", which may fill a store, and "served", which is measured and never fills a store.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.extras import module_of_extra
from finemoe.paths import PROMPTS, ROOT
from finemoe.suggestions import suggestion

GENRES = ("questions", "dialogues")
SPLITS = ("history", "served")


def read_prompts(source: str, *, limit: int | None = None, column: str = "prompt", split_seed: int = 0) -> list[dict[str, str]]:
    """Read a prompt set.

    Args:
        source: "questions" or "dialogues", a JSONL file, or a hub id "owner/name" (its train split). A relative path that is not
            in the working folder starts at the repository root: notebooks have working folders of their own.
        limit: number of requests to take, keeping the ratio of 7:3 between the splits.
        column: name of the column that holds the prompt in datasets from elsewhere.
        split_seed: seed of the 7:3 split for prompts that do not state "history" or "served".
    Returns:
        Rows with id, prompt, topic and split.
    Raises:
        FinemoeError: there is no such prompt set, it is damaged, the column has no text, a split has too few prompts, or the
            package that reads from the hub is not installed.
    """
    rows = _read_rows(_path_of(source), source, column, split_seed)
    return rows if limit is None else _take(rows, limit)


def _path_of(source: str) -> Path:
    if source in GENRES:
        return PROMPTS / f"{source}.jsonl"
    return Path(source) if Path(source).is_file() else ROOT / source


def _read_rows(path: Path, source: str, column: str, split_seed: int) -> list[dict[str, str]]:
    if path.is_file():
        raw = _from_file(path)
    elif source.count("/") == 1 and not source.startswith((".", "/")):
        raw = _from_hub(source)
    else:
        raise FinemoeError(f"unknown dataset {source!r}; {suggestion(source, GENRES)}, or give a JSONL file or a hub id")
    if not raw:
        raise FinemoeError(f"dataset {source!r} is empty")
    splits = _draw_splits(len(raw), split_seed)
    return [
        {
            "id": str(row.get("id", f"{Path(source).stem}-{number}")),
            "prompt": _text_of(row, column, f"row {number + 1} of dataset {source!r}"),
            "topic": str(row.get("topic", "")),
            "split": row["split"] if row.get("split") in SPLITS else splits[number],
        }
        for number, row in enumerate(raw)
    ]


def _from_file(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FinemoeError(f"{path}: not a text file ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise FinemoeError(f"{path}, line {number}: not JSON ({error}); a prompt file has one object a line") from error
            if not isinstance(rows[-1], dict):
                raise FinemoeError(f"{path}, line {number}: not a JSON object; a prompt file has one object a line")
    return rows


def _text_of(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise FinemoeError(f"{where} has no column {column!r}; its columns are {sorted(row)}")
    if not isinstance(row[column], str) or not row[column].strip():
        raise FinemoeError(f"{where} has {row[column]!r:.60} in column {column!r}, not text; name the column of the prompt")
    return str(row[column])


def _from_hub(name: str) -> list[dict[str, Any]]:
    datasets = module_of_extra("datasets", f"reading {name!r} from the hub")
    try:
        return list(datasets.load_dataset(name, split="train"))
    except Exception as error:  # the hub client raises many kinds of errors; they are handled alike
        reason = str(error).strip().splitlines()[0]
        raise FinemoeError(f"dataset {name!r} cannot be fetched from the hub: {reason}") from error


def _draw_splits(count: int, seed: int) -> list[str]:
    splits = ["history"] * round(0.7 * count) + ["served"] * (count - round(0.7 * count))
    Random(seed).shuffle(splits)
    return splits


def _take(rows: list[dict[str, str]], limit: int) -> list[dict[str, str]]:
    if not 1 <= limit <= len(rows):
        raise FinemoeError(f"cannot take {limit} prompts: the dataset has {len(rows)}")
    room = dict(zip(SPLITS, (round(0.7 * limit), limit - round(0.7 * limit)), strict=True))
    for split, count in room.items():
        if (found := sum(row["split"] == split for row in rows)) < count:
            raise FinemoeError(f"{limit} prompts need {count} of split {split!r}, but the dataset has {found}; ask for fewer")
    return list(_first_of_each(rows, dict(room)))


def _first_of_each(rows: list[dict[str, str]], room: dict[str, int]) -> Iterator[dict[str, str]]:
    for row in rows:
        if room.get(row["split"], 0) > 0:
            room[row["split"]] -= 1
            yield row
