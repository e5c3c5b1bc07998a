"""Suggest the name that a mistyped name probably stands for."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name as a question, if one is close, then all known names."""
    names = list(known)
    close = get_close_matches(str(word), names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(names)}"
