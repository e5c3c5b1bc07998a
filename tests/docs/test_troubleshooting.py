"""Messages that docs/troubleshooting.md explains are messages that the program has."""

import re

import pytest

from finemoe.paths import ROOT

# Of shells, pip, conda, Snakemake, the operating system and CUDA; and those that are put together of several parts.
ELSEWHERE = (
    "command not found",
    "No module named",
    "config: unknown",
    "FileNotFoundError",
    "No rule to produce",
    "Missing input files",
    "has no attribute",
    "marked for report but does not exist",
    "Directory cannot be locked",
    "Error: NOTEBOOK",
    "Nothing to be done",
    "No space left on device",
    "cannot be written (",
    "finemoe: interrupted",
    "operation not permitted when stream is capturing",
)
_LEAST_LETTERS = 7  # of a part between two variable ones that tells a message


def _messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    heads = [line for line in page.splitlines() if line.startswith("`")]
    return [message for head in heads for message in re.findall(r"`([^`]+)`", head)]


@pytest.fixture(scope="module")
def sources() -> str:
    """All texts of the package, with literals joined and what is filled in left out."""
    files = [ROOT / "Makefile", *sorted((ROOT / "finemoe").rglob("*.py"))]
    text = re.sub(r'"\s*\n\s*(?:rf|f|r)?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))
    return re.sub(r"\{[^{}]*\}", "\0", text).replace("`", "").replace("\\'", "'")


@pytest.mark.parametrize("message", [message for message in _messages() if not any(part in message for part in ELSEWHERE)])
def test_a_message_is_the_programs_own(message: str, sources: str) -> None:
    parts = [part.strip(" ;,:()'") for part in message.split("...")]

    assert any(len(part) >= _LEAST_LETTERS for part in parts)
    for part in parts:
        assert len(part) < _LEAST_LETTERS or part in sources, f"docs/troubleshooting.md: no message has {part!r}"
