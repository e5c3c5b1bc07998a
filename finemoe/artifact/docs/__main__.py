"""Renew every generated part of README.md and docs/: `python -m finemoe.artifact.docs`; `--list` prints the generated numbers."""

import argparse
import sys
from pathlib import Path

from finemoe.artifact.docs.numbers import all_numbers
from finemoe.artifact.docs.pages import CLAIMS, renewed_pages, written_pages
from finemoe.errors import FinemoeError
from finemoe.files import write_text
from finemoe.paths import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Returns an exit status: 1 if a page is out of date and `--check` leaves it so, or if a mark is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m finemoe.artifact.docs", description="Renew the documentation's generated parts."
    )
    parser.add_argument("--list", action="store_true", help="print every generated number, what it is, and its table")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    chosen = parser.parse_args(arguments)
    try:
        return list_numbers() if chosen.list else renew(is_check=chosen.check)
    except FinemoeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def list_numbers() -> int:
    """One line a number: its name, text, meaning and table."""
    for number in all_numbers().values():
        print(f"{number.name}\t{number.text}\t{number.meaning}\tdata/{number.source}")
    return 0


def renew(is_check: bool = False) -> int:
    """Write the pages that changed, and name them.

    Raises:
        FinemoeError: a page was edited while its text was computed; the edit stays.
    """
    before = {path: path.read_text(encoding="utf-8") for path in [*written_pages(), CLAIMS]}
    changed = {path: text for path, text in renewed_pages().items() if before[path] != text}
    for path, text in changed.items():
        if not is_check:
            _write(path, text, before[path])
        print(f"{path.relative_to(ROOT)}: {'out of date' if is_check else 'renewed'}")
    return int(is_check and bool(changed))


def _write(path: Path, text: str, before: str) -> None:
    if path.read_text(encoding="utf-8") != before:
        raise FinemoeError(f"{path.relative_to(ROOT)}: edited meanwhile and left as it is; run this again")
    write_text(path, text)


if __name__ == "__main__":
    sys.exit(main())
