"""The interface of an eviction rule: the worth of each held expert, and what the rule learns from a demand."""

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
    """The default `visit`: nothing in addition to the common statistics."""


def keep_nothing(num_experts: int) -> tuple[float, ...]:
    """The default `own`: no data."""
    return ()


@dataclass(frozen=True)
class EvictionRule:
    """A rule by which a full cache selects the expert to evict: the least worthy of those that may be evicted (ties: the less
    frequent, then the layer whose turn is farthest away, then the lower id).

    This class compiles the rule's functions, which may call only compiled functions and NumPy.

    Attributes:
        weigh: (stats, experts, worth): fill worth [n] float64 with the worth of keeping each of `experts`, [n] flat ids. It reads
            only `stats`. It is called when an expert must be evicted, for all held experts at once or for a single one, so the
            worth of an expert must not depend on the others in the call.
        visit: (stats, layer, experts): a layer demands its set, [n] ids within the layer; called once per event, before `stats`
            count it. A rule that learns writes to its own rows, `stats.own` [R, N].
        own: initial value of each own row, as a function of the number of experts J.
        needs_future: whether it reads `stats.next_use`, which only a replay knows.
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
        """Whether `visit` has an effect."""
        return self.visit is not learn_nothing

    def pointers(self) -> tuple[Any, Any]:
        """(weigh, visit) in the form that compiled code takes (`finemoe.compiling.pointer`)."""
        return _pointers(self)

    def addresses(self) -> tuple[int, int]:
        """Addresses of the compiled (weigh, visit), for code that calls by address (`finemoe.native`); valid as long as the rule
        exists."""
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
