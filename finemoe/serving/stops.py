"""Answers without the stop sequence that ended them, as OpenAI gives them."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any


def before_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop sequence; all of it if there is none."""
    begins = [text.find(stop) for stop in stops if stop in text]
    return text[: min(begins)] if begins else text


class StopCut:
    """Passes a text on that comes in pieces, up to the first stop sequence; what may be the beginning of one waits.

    Args:
        stops: the stop sequences, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._waiting, self._is_over = stops, "", False

    def passed(self, piece: str) -> str:
        """What of the text can be passed on after this piece."""
        if self._is_over:
            return ""
        text = self._waiting + piece
        passed = before_stop(text, self._stops)
        self._is_over = len(passed) < len(text)
        num_waiting = 0 if self._is_over else max(_num_begun(text, stop) for stop in self._stops)
        self._waiting = text[len(text) - num_waiting :]
        return passed[: len(passed) - num_waiting]

    def rest(self) -> str:
        """What waited, once no more comes."""
        rest, self._waiting = self._waiting, ""
        return rest


def _num_begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop sequence."""
    most = min(len(text), len(stop) - 1)
    return next((num for num in range(most, 0, -1) if text.endswith(stop[:num])), 0)


class WithoutStops:
    """The queue of a streamed answer, whose text ends before the first stop sequence.

    Args:
        queue: the pieces of text and whatever else the stream has; None is its end. stops: the stop sequences.
    """

    def __init__(self, queue: asyncio.Queue[Any], stops: Sequence[str]) -> None:
        self._queue, self._cut, self._ready = queue, StopCut(stops), deque[Any]()

    async def get(self) -> Any:
        """The next item, once there is one."""
        while not self._ready:
            self._add(await self._queue.get())
        return self._ready.popleft()

    def get_nowait(self) -> Any:
        """The next item.

        Raises:
            QueueEmpty: there is none yet.
        """
        while not self._ready:
            self._add(self._queue.get_nowait())
        return self._ready.popleft()

    def _add(self, item: Any) -> None:
        is_text = type(item) is str  # thoughts are strings of another type, and no stop sequence ends them
        items = (self._cut.passed(item),) if is_text else (self._cut.rest(), item)
        self._ready.extend(one for one in items if one != "")
