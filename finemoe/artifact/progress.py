"""Progress bars with time left, for terminals and notebooks. They stay silent in the pipeline, which runs notebooks headless."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from finemoe.paths import is_headless

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str, unit: str = "it", total: int | None = None, leave: bool = True) -> Iterable[Item]:
    """Iterate with a progress bar.

    Args:
        items: the items to iterate over.
        title: description of the work.
        unit: name of one item.
        total: number of items, if `items` has no length.
        leave: whether the bar stays when the loop ends; a bar inside another loop should not.
    """
    if not _has_reader():
        return items
    from tqdm.auto import tqdm

    bar: Iterable[Item] = tqdm(items, desc=title, unit=unit, total=total, leave=leave)
    return bar


@contextmanager
def steps(title: str, total: int, unit: str = "it") -> Iterator["Steps"]:
    """A progress bar that the caller advances."""
    if not _has_reader():
        yield Steps(None)
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=title, unit=unit) as bar:
        yield Steps(bar)


class Steps:
    """Advances a bar, if there is one. `generate(streamer=...)` also takes it: it counts one step per generated token."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._is_prompt = True

    def advance(self, note: str = "") -> None:
        """Advance by one step; `note` is shown after the bar."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()

    def put(self, _: Any) -> None:
        """Called by `generate`, first with the prompt, then with each token."""
        if not self._is_prompt:
            self.advance()
        self._is_prompt = False

    def end(self) -> None:
        """Called by `generate` when a request is complete."""
        self._is_prompt = True


def _has_reader() -> bool:
    """Whether a person watches: a notebook run by hand, or a terminal."""
    return not is_headless() and ("ipykernel" in sys.modules or sys.stderr.isatty())
