"""What a mistyped name was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 20  # of more names, only the closest is printed, if one is close


def suggestion(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name as a question, if one is close, and the known names."""
    names = list(known)
    close = get_close_matches(str(word), names, n=1)
    question = f"did you mean {close[0]!r}?" if close else ""
    listed = f"known: {', '.join(names)}" if len(names) <= _LISTED or not close else ""
    return " ".join(part for part in (question, listed) if part)
