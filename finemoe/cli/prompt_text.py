"""The prompt of `finemoe run`: from the command line, a file or standard input, as a text or as a message of a chat."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError

_ONE = "give one of --prompt TEXT, --prompt - (standard input) and --prompt-file FILE, or --chat"


def asked_of(prompt: str | None, file: Path | None, is_talk: bool, as_json: bool) -> str | None:
    """The text that a user gives; None for a chat over standard input.

    Raises:
        FinemoeError: it is given twice or not at all, is empty, or its file cannot be read.
    """
    if is_talk:
        if prompt is not None or file is not None:
            raise FinemoeError("--chat reads its turns from standard input; leave --prompt and --prompt-file out")
        if as_json:
            raise FinemoeError("--chat prints answers as they come; leave --json out, or give a --prompt")
        return None
    if (prompt is None) == (file is None):
        raise FinemoeError(f"there {'is no prompt' if prompt is None else 'are two prompts'}; {_ONE}")
    text = _read(file) if file is not None else str(prompt)
    if prompt == "-":
        with reading_input():
            text = sys.stdin.read().rstrip("\n")
    if not text:
        raise FinemoeError(f"the prompt is empty; {_ONE}")
    return text


@contextmanager
def reading_input() -> Iterator[None]:
    """Refuse standard input that is not text.

    Raises:
        FinemoeError: it is not in UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise FinemoeError(f"standard input is not text in UTF-8 ({error.reason}); convert it") from error


def _read(file: Path) -> str:
    if not file.exists() or file.is_dir():  # a shell gives the output of a command as a pipe
        raise FinemoeError(f"{file}: no such file; {_ONE}")
    try:
        return file.read_text(encoding="utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as error:
        raise FinemoeError(f"{file}: is not text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error


def is_chat(tokenizer: Any, raw: bool, system: str | None) -> bool:
    """Whether the prompt becomes a message of a chat: if the tokenizer has a template, unless the user wants the text alone.

    Raises:
        FinemoeError: a system message is given, but there is no chat.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if system is not None and (raw or not has_template):
        reason = "--raw leaves the template out" if has_template else "this model's tokenizer has no chat template"
        raise FinemoeError(f"--system is a message of a chat, but {reason}; put the text into --prompt")
    return has_template and not raw


def messages_of(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The first messages of a chat."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def template_options(texts: list[str]) -> dict[str, Any]:
    """`--template-option NAME=VALUE` as arguments of the chat template; true, false and whole numbers are taken as such.

    Raises:
        FinemoeError: a text has no "=".
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise FinemoeError(f"--template-option {text}: write NAME=VALUE, such as enable_thinking=false")
        truth = {"true": True, "false": False}.get(value.lower())
        found[name.strip()] = truth if truth is not None else int(value) if value.isdecimal() else value
    return found
