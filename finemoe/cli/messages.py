"""How a command ends early: one line that names options as they are typed, and the exit code that shells expect."""

import errno
import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

from finemoe.errors import FinemoeError

Command = TypeVar("Command", bound=Callable[..., Any])
INTERRUPTED = 130  # the exit code of a program that SIGINT ended

_OPTIONS = {  # arguments of the library, and the options that set them
    "batch_size": "--batch-size",
    "expert_bits": "--expert-bits",
    "expert_format": "--expert-format",
    "expert_memories": "--expert-memory",
    "expert_memory": "--expert-memory",
    "history_rows": "--history-tokens",
    "host_memory": "--host-memory",
    "max_new_tokens": "--max-new-tokens",
    "num_experts": "--experts",
    "num_layers": "--layers",
    "prefetch_distance": "--prefetch-distance",
    "prompt_tokens": "--prompt-tokens",
    "temperature": "--temperature",
    "served_rows": "--tokens",
    "store_capacity": "--store-capacity",
    "stream_prompts_from": "--stream-prompts-from",
    "top_k": "--top-k",
    "top_p": "--top-p",
}
_WORDS = (
    *("context", "devices", "dtype", "eviction", "hardware", "history", "link", "lookahead", "model", "policy", "seed", "slots"),
)
_STRIDES = re.compile(r"\blookahead=\(([\d, ]+)\)")
_ASSIGNED = re.compile(rf"(?<![\w./'-])({'|'.join((*_OPTIONS, *_WORDS))})=(?:'([^']*)'|([\w./:%]*))")
_NAMED = re.compile(rf"(?<![\w./'-])({'|'.join(_OPTIONS)})(?![\w./'-])")
_STRIDE_LIST = re.compile(r"^lookahead is \[([\d, ]*)\];([^(]*), such as \([\d, ]+\)")
_SUBJECT = re.compile(rf"^({'|'.join(_WORDS)})(?= is )")
_CALLED = re.compile(r"\bfinemoe\.(replay|record|advise|load)\b(?![.\w])")
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that can tell what it keeps; the message completes "interrupted; "."""


def command(function: Command) -> Command:
    """Decorate a command: what a user can mend, or has stopped, ends it with one line."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except FinemoeError as error:
            raise FinemoeError(as_typed(str(error))) from error
        except OSError as error:
            if error.errno not in _UNUSABLE | _FULL or (error.errno in _FULL and error.filename is None):
                raise
            raise FinemoeError(_line_of(error)) from error
        except KeyboardInterrupt as stop:
            kept = str(stop) if isinstance(stop, Interrupted) else "no file was written"
            typer.echo(f"{chr(10) if sys.stderr.isatty() else ''}finemoe: interrupted; {kept}", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run  # type: ignore[return-value]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file if the disk is full; libraries for figures leave it out, or fail otherwise when they clean up.

    Raises:
        FinemoeError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in _FULL):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise FinemoeError(_line_of(cause, path)) from error


def as_typed(message: str) -> str:
    """A message of the library with its arguments named as command-line options."""
    message = _STRIDES.sub(lambda found: " ".join(f"--lookahead {stride}" for stride in re.findall(r"\d+", found[1])), message)
    message = message.replace("take trace.split('history') and trace.split('served')", "use --split instead of --history")
    message = _ASSIGNED.sub(lambda found: f"{_option(found[1])} {found[2] or found[3] or ''}".rstrip(), message)
    message = _STRIDE_LIST.sub(
        lambda found: f"--lookahead is {found[1] or 'empty'};{found[2]}, each by its own --lookahead", message
    )
    message = _NAMED.sub(lambda found: _option(found[1]), message)
    message = _SUBJECT.sub(lambda found: _option(found[1]), message)
    return _CALLED.sub(lambda found: f"`finemoe {found[1].replace('load', 'run')}`", message)


def _option(name: str) -> str:
    return _OPTIONS.get(name, f"--{name}")


def _line_of(error: OSError, path: Path | None = None) -> str:
    remedy = "free some space, or write elsewhere" if error.errno in _FULL else "check the path and its permissions"
    return f"{path or error.filename}: {error.strerror}; {remedy}"
