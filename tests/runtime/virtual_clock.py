"""A clock that only waiting moves, so that what waited for a paced link can be told exactly and on any machine."""

import ctypes

from finemoe.chunks import paced_chunk_bytes
from finemoe.runtime.link import Link
from finemoe.units import parse_rate

_NS = 1_000_000_000


class VirtualClock:
    """Stands in for the module `time` where one thread loads and computes; computing takes no time on it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


class VirtualLink(Link):
    """A paced link on that clock.

    Args:
        description: "paced:4MB/s".
    """

    def __init__(self, description: str, clock: VirtualClock) -> None:
        self._bytes_per_s, self._clock = parse_rate(description.partition(":")[2]), clock
        self.chunk_bytes = paced_chunk_bytes(self._bytes_per_s)
        self._free_at_s = 0.0
        self._ends_s: list[float] = []  # by mark

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        ctypes.memmove(sink, source, size)
        self._free_at_s = max(self._free_at_s, self._clock.now_s) + size / self._bytes_per_s
        self._ends_s.append(self._free_at_s)
        return len(self._ends_s) - 1

    def wait(self, mark: int, most_ns: int) -> int:
        self._clock.now_s = max(self._clock.now_s, self._ends_s[mark])
        return 1
