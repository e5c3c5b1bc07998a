"""A clock that only waiting moves, so that what waited for a paced link can be told exactly and on any machine."""


class VirtualClock:
    """Stands in for the module `time` where one thread loads and computes; computing takes no time on it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s
