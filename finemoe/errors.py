"""The one exception family that users of finemoe meet: a clear line that says what is wrong and what to do."""

import errno
import sys
from types import TracebackType


class FinemoeError(ValueError):
    """Bad input or an unusable file; the message names what, where, and the remedy."""


class EngineError(RuntimeError):
    """A failure inside the running engine (link, matcher, router); raised in the caller's next step with its cause."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, with the next where it only announces that one; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def one_line_for_bad_input(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The excepthook of command lines: what a user can mend is one line on standard error, all else has its traceback."""
    if isinstance(error, FinemoeError | EngineError):
        print(f"finemoe: {error}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        print(f"finemoe: {error}; free some, or write elsewhere", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
