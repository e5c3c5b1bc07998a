"""What a mistyped name was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 20  # of more names, only the closest is printed, if one is close


def suggestion(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name as a question, if one is close, and the known names."""
    names = list(known)
    question = did_you_mean(word, names)
    listed = f"known: {', '.join(names)}" if len(names) <= _LISTED or not question else ""
    return " ".join(part for part in (question, listed) if part)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The closest known name as a question; "" if none is close."""
    close = get_close_matches(str(word), list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""
