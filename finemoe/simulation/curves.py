"""Hit rates of on-demand caches of many sizes under many rules, in one pass over a trace."""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from finemoe.cache.rules import rule_named
from finemoe.compiling import failures_raised
from finemoe.errors import FinemoeError
from finemoe.policies.block import Block
from finemoe.processor import num_cores
from finemoe.simulation.events import block_rows, demanded_sets, iteration_blocks
from finemoe.simulation.future import Future
from finemoe.simulation.replay import sweep
from finemoe.simulation.stack import Demands, empty_stack, run
from finemoe.traces import RoutingTrace


@dataclass(frozen=True)
class HitCurve:
    """Hits of one rule's caches, one for each size.

    Attributes:
        rule; slots: [S] sizes in experts, ascending. hits: [R, S] demanded experts that were resident, per request.
        accesses: [R] all demanded experts.
    """

    rule: str
    slots: np.ndarray
    hits: np.ndarray
    accesses: np.ndarray

    @property
    def hit_rates(self) -> np.ndarray:
        """[S] hit rates over all requests."""
        rates: np.ndarray = self.hits.sum(axis=0) / self.accesses.sum()
        return rates


def hit_curves(trace: RoutingTrace, rules: Sequence[str], slots: Sequence[int] | np.ndarray) -> dict[str, HitCurve]:
    """Replay a trace with on-demand loading over one cache, empty at the start, for every rule and size, like `sweep`.

    One pass (stack.py) gives all sizes that hold the largest demanded set. Every smaller size is replayed separately.

    Args:
        rules: names of eviction rules, including Belady's. slots: sizes in experts.
    Raises:
        FinemoeError: a rule is unknown, or a size is not a whole number from 1 to all experts.
    """
    sizes = _checked(trace, slots)
    passes = {name: _Pass(name, trace, sizes) for name in rules}
    largest = _run(trace, list(passes.values()))
    below = int(np.searchsorted(sizes, largest))
    return {name: _curve(trace, one, sizes, below) for name, one in passes.items()}


def _curve(trace: RoutingTrace, one: "_Pass", sizes: np.ndarray, below: int) -> HitCurve:
    """The results of a pass; it does not cover the sizes before `below`."""
    hits = one.hits
    if below:
        hits[:, :below] = _replayed(trace, one.name, sizes[:below])
    return HitCurve(one.name, sizes, hits, one.accesses)


def _checked(trace: RoutingTrace, slots: Sequence[int] | np.ndarray) -> np.ndarray:
    sizes, most = np.unique(np.asarray(slots)), trace.num_layers * trace.num_experts
    if not len(sizes) or sizes.dtype.kind not in "iu" or sizes[0] < 1 or sizes[-1] > most:
        raise FinemoeError(f"sizes of caches must be whole numbers of experts from 1 to {most}, not {list(slots)}")
    return sizes.astype(np.int64)


class _Pass:
    """One rule's stack and the hits counted in it."""

    def __init__(self, name: str, trace: RoutingTrace, sizes: np.ndarray) -> None:
        rule = rule_named(name, is_replay=True)
        self.name, self.needs_future, self.learns = name, rule.needs_future, rule.learns
        self._stack, self._pointers = empty_stack(rule, trace.num_layers, trace.num_experts), rule.pointers()
        places = np.arange(trace.num_layers * trace.num_experts)
        self._smallest = np.append(np.searchsorted(sizes, places, side="right"), len(sizes))
        self._found = np.zeros((trace.num_requests, len(sizes) + 1), dtype=np.int64)

    def foresee(self, first_uses: np.ndarray) -> None:
        self._stack.stats.next_use[:] = first_uses

    def run(self, demands: Demands) -> None:
        run(self._stack, demands, *self._pointers, self._smallest, self._found)

    @property
    def hits(self) -> np.ndarray:
        hits: np.ndarray = np.cumsum(self._found[:, :-1], axis=1)
        return hits

    @property
    def accesses(self) -> np.ndarray:
        accesses: np.ndarray = self._found.sum(axis=1)
        return accesses


def _run(trace: RoutingTrace, passes: list[_Pass]) -> int:
    """Run all rules over all blocks in parallel; returns the size of the largest demanded set."""
    largest, threads = 0, set[int]()
    passes = sorted(passes, key=lambda one: not one.learns)  # the longest first
    title = f"one of the eviction rules {', '.join(one.name for one in passes)}"
    with (
        Future(trace, any(one.needs_future for one in passes)) as future,
        failures_raised(title, threads),
        ThreadPoolExecutor(num_cores(), initializer=lambda: threads.add(threading.get_ident())) as pool,
    ):
        for one in passes if future.is_known else ():
            one.foresee(future.first_uses)
        for block in iteration_blocks(trace, block_rows(trace)):
            demands = _demands(trace, block, future)
            largest = max(largest, int(np.diff(demands.begins).max(initial=0)))
            list(pool.map(_Pass.run, passes, itertools.repeat(demands)))
    return largest


def _demands(trace: RoutingTrace, block: Block, future: Future) -> Demands:
    begins, demanded = demanded_sets(trace, block)
    next_use = future.take(len(demanded)) if future.is_known else np.zeros(len(demanded), dtype=np.int64)
    layers = np.arange(len(begins) - 1) % trace.num_layers
    return Demands(layers, begins, demanded, next_use, np.repeat(block.requests, trace.num_layers))


def _replayed(trace: RoutingTrace, rule: str, sizes: np.ndarray) -> np.ndarray:
    """Hits [R, sizes] of caches that serve some demanded sets in turns."""
    memories: list[Any] = [f"{size}B" for size in sizes]
    reports = sweep(trace, "on-demand", memories, [rule], expert_bytes=1)
    return np.array([[request.hits for request in report.requests] for report in reports]).T
