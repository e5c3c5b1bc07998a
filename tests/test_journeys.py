"""docs/design.md shows the ways of a token, a prefetch and a replayed row as the program takes them."""

import re
import subprocess
import sys

import pytest

from finemoe.paths import ROOT

MOST_FILES = {"a generated token": 14, "a prefetch": 8, "a replayed row": 20}
MOST_RETURNS = {"a prefetch": 5, "a replayed row": 5}  # the token's way is longer than was aimed at, and the page says so


@pytest.fixture(scope="module")
def journeys() -> dict[str, list[str]]:
    """The files of each journey, run with the compiled functions as Python."""
    command = [sys.executable, "-m", "tests.journeys"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if heading := re.match(r"(a [a-z ]+): ", line):
            files = found[heading[1]] = []
        elif line.strip():
            files.append(line.split()[1])
    return found


@pytest.mark.timeout(150)  # a program that loads a model
def test_the_page_shows_what_is_run(journeys):
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## 8.")[2]
    parts = re.split(r"^\*\*(A [a-z ]+)\*\*: ", page, flags=re.MULTILINE)[1:]
    shown = {
        name.lower(): re.findall(r"^\| \d+ \| [^|]*\| `([^`]+)` \|$", table, re.MULTILINE)
        for name, table in zip(parts[::2], parts[1::2], strict=True)
    }
    assert shown == journeys


@pytest.mark.timeout(150)
def test_journeys_are_short(journeys):
    for name, most in MOST_FILES.items():
        assert len(set(journeys[name])) <= most, name
    for name, most in MOST_RETURNS.items():
        assert len(journeys[name]) - len(set(journeys[name])) <= most, name
        assert len(journeys[name]) <= MOST_FILES[name], name
