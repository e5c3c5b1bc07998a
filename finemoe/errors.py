"""The exceptions that users of finemoe see: one clear line that states what is wrong and what to do."""

import errno
import sys
from types import TracebackType


class FinemoeError(ValueError):
    """Invalid input or an unusable file; the message states what is wrong, where, and how to fix it."""


class EngineError(RuntimeError):
    """A failure inside the running engine (link, matcher, router), raised with its cause by the caller's next step."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second if the first ends in a colon; without a message, the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def one_line_for_bad_input(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook for command lines: errors that a user can fix print one line on standard error, others a traceback."""
    if isinstance(error, FinemoeError | EngineError):
        print(f"finemoe: {error}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        print(f"finemoe: {error}; free some space, or write elsewhere", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
