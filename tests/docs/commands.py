"""Commands that the documentation shows: found in blocks and in sentences, and what runs or covers each."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from finemoe.artifact.docs.pages import written_pages
from finemoe.paths import ROOT

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELL = ("sh", "bash", "console")
PROGRAMS = ("finemoe", "make", "snakemake", "python", "jupyter", "pip", "conda", "docker", "scripts/gpu_slice.sh")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: path from the repository root. text: without prompt and comment. in_block: whether a reader pastes it from a block.
    """

    page: str
    text: str
    in_block: bool

    @property
    def words(self) -> list[str]:
        """As a shell splits it."""
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def blocks_of(page: Path, languages: tuple[str, ...]) -> list[str]:
    """Fenced blocks of a page in these languages, without their indentation."""
    found = []
    for fence in _FENCE.finditer(page.read_text(encoding="utf-8")):
        if fence["language"] in languages:
            indent = len(fence["indent"])
            found.append("\n".join(line[indent:] for line in fence["body"].splitlines()) + "\n")
    return found


def commands_of(page: Path) -> list[Command]:
    """Every command of a page, in its order: lines of shell blocks, and code in sentences that names a program and more."""
    name, text = str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
    commands = [Command(name, line, True) for block in blocks_of(page, SHELL) for line in lines_of(block)]
    for span in _SPAN.findall(_FENCE.sub("", text)):
        words = span.split()
        if len(words) > 1 and words[0] in PROGRAMS and not any(word.startswith(("...", "…")) for word in words):
            commands.append(Command(name, span, False))
    return commands


def lines_of(block: str) -> list[str]:
    """Commands of a shell block: continued lines joined, prompts and comments removed; output after a prompt is left out."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    kept = (_without_comment(line).strip() for line in lines)
    return [line for line in kept if line]


def _without_comment(line: str) -> str:
    lexer = shlex.shlex(line, posix=False, punctuation_chars=True)
    lexer.commenters = ""
    lexer.whitespace_split = True
    words = list(lexer)
    cut = next((place for place, word in enumerate(words) if word.startswith("#")), len(words))
    return " ".join(words[:cut])


def all_commands() -> list[Command]:
    """Of every page."""
    return [command for page in written_pages() for command in commands_of(page)]
