"""Records spans of compute, links and matcher for Perfetto or chrome://tracing. Costs nothing unless recording."""

import json
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.files import write_text

_MOST_SPANS = 2_000_000
Span = tuple[str, str, float, float]  # track, name, begin and end (time.perf_counter)


class Timeline:
    """Spans on named tracks; any thread may add spans."""

    def __init__(self) -> None:
        self.is_recording = False
        self._num_left_out = 0
        self._spans: list[Span] = []
        self._watched: list[tuple[Callable[[], None], Callable[[], Iterable[Span]]]] = []

    def watch(self, start: Callable[[], None], spans: Callable[[], Iterable[Span]]) -> None:
        """Register a source that records its own spans: `start` is called when recording starts, `spans` when it stops, to
        collect them."""
        self._watched.append((start, spans))

    def start(self) -> None:
        """Start recording into an empty timeline."""
        self._spans, self._num_left_out = [], 0
        for start, _ in self._watched:
            start()
        self.is_recording = True

    def stop(self) -> None:
        """Stop recording."""
        if self.is_recording:
            for _, spans in self._watched:
                for span in spans():
                    self.add(*span)
        self.is_recording = False

    def add(self, track: str, name: str, begin_s: float, end_s: float | None = None) -> None:
        """Add a span from `begin_s` (time.perf_counter) until `end_s`, or until now."""
        if not self.is_recording:
            return
        if len(self._spans) < _MOST_SPANS:
            self._spans.append((track, name, begin_s, time.perf_counter() if end_s is None else end_s))
        else:
            self._num_left_out += 1

    def save(self, path: str | Path) -> None:
        """Write the recorded spans in the Chrome trace event format (times in microseconds).

        Raises:
            FinemoeError: nothing was recorded.
        """
        if not self._spans:
            raise FinemoeError("nothing was recorded; run the model inside the timeline's `with` block")
        if self._num_left_out:
            warnings.warn(f"{path}: the last {self._num_left_out} spans are missing; record fewer iterations", stacklevel=2)
        tracks = {track: number for number, track in enumerate(sorted({span[0] for span in self._spans}))}
        origin_s = min(span[2] for span in self._spans)
        names = [
            {"ph": "M", "pid": 0, "tid": number, "name": "thread_name", "args": {"name": track}}
            for track, number in tracks.items()
        ]
        spans = [
            {
                "ph": "X",
                "pid": 0,
                "tid": tracks[track],
                "name": name,
                "ts": round((begin_s - origin_s) * 1e6, 3),
                "dur": round(max(0.0, end_s - begin_s) * 1e6, 3),
            }
            for track, name, begin_s, end_s in sorted(self._spans, key=lambda span: span[2])
        ]
        write_text(path, json.dumps({"traceEvents": [*names, *spans], "displayTimeUnit": "ms"}))
