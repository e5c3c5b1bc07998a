"""What an eviction rule is: what each held expert is worth, and what is learned from a demand."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from finemoe.cache import state
from finemoe.cache.state import Statistics, empty_state
from finemoe.compiling import njit, pointer
from finemoe.native import function_addresses
from finemoe.stale_kernels import forget_stale_kernels

Weigh = Callable[[Statistics, np.ndarray, np.ndarray], None]
Visit = Callable[[Statistics, int, np.ndarray], None]


@njit(cache=True)
def learn_nothing(stats, layer, experts):  # type: ignore[no-untyped-def]
    """What most rules do of their own at a demand: the statistics are kept for all."""


def keep_nothing(num_experts: int) -> tuple[float, ...]:
    """What most rules keep for themselves."""
    return ()


@dataclass(frozen=True)
class EvictionRule:
    """A rule by which a full cache chooses who goes: among those that may, the least worthy (ties: the less frequent, then the
    layer whose turn is farthest away, then the lower id).

    Its functions are compiled by this class; they may call nothing but compiled functions and NumPy.

    Attributes:
        weigh: (stats, experts, worth): fill worth [n] float64 with what it is worth to keep each of `experts`, [n] flat ids. It
            reads `stats` only, and is asked when somebody must go: of any of the held experts, all at once or one alone, so that
            an expert's worth must not depend on which others it is shown.
        visit: (stats, layer, experts): a layer demands its set, [n] ids within the layer, once per event; `stats` do not count it
            yet. A rule that learns something writes into its own rows, `stats.own` [R, N].
        own: the value that each own row begins with, by the number of experts J.
        needs_future: whether it reads `stats.next_use`, so that it can only run where the future is known (replay).
    """

    weigh: Weigh
    visit: Visit = learn_nothing
    own: Callable[[int], tuple[float, ...]] = keep_nothing
    needs_future: bool = False

    def __post_init__(self) -> None:
        for name in ("weigh", "visit"):
            function = getattr(self, name)
            if not hasattr(function, "py_func"):
                forget_stale_kernels(function.__code__.co_filename, state.__file__)
                object.__setattr__(self, name, njit(function, cache=True))

    @property
    def learns(self) -> bool:
        """Whether `visit` does anything."""
        return self.visit is not learn_nothing

    def pointers(self) -> tuple[Any, Any]:
        """(weigh, visit) as compiled code takes them (`finemoe.compiling.pointer`)."""
        return _pointers(self)

    def addresses(self) -> tuple[int, int]:
        """Of (weigh, visit) as compiled, for code that finds them by address (`finemoe.native`); valid as long as the rule
        lives."""
        return _addresses(self)


@functools.cache
def _pointers(rule: EvictionRule) -> tuple[Any, Any]:
    stats, numbers = empty_state(1, 1, 1, rule.own(1)).stats, np.zeros(1, dtype=np.int64)
    return pointer(rule.weigh, stats, numbers, np.zeros(1)), pointer(rule.visit, stats, 1, numbers)


@functools.cache
def _addresses(rule: EvictionRule) -> tuple[int, int]:
    stats, numbers = empty_state(1, 1, 1, rule.own(1)).stats, np.zeros(1, dtype=np.int64)
    weigh, _ = function_addresses(rule.weigh, stats, numbers, np.zeros(1))
    visit, _ = function_addresses(rule.visit, stats, 1, numbers)
    return weigh, visit
