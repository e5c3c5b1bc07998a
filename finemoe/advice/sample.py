"""Which part of a trace is replayed, and which is known beforehand: long traces are sampled, and what was taken is told."""

from dataclasses import dataclass

import numpy as np

from finemoe.simulation.knowledge import Knowledge
from finemoe.traces import RoutingTrace

FEWEST_REQUESTS = 5  # of which a few can be served while others are the history
STORE_CAPACITY = 1000  # C, maps
_HISTORY_SHARE = 0.7


@dataclass(frozen=True)
class Sample:
    """What advice is drawn from.

    Attributes:
        served: the requests that are replayed. history: other requests, which learning systems know beforehand; None where there
            are too few, and such systems start with nothing. notes: what was done, in words.
    """

    served: RoutingTrace
    history: RoutingTrace | None
    notes: tuple[str, ...]

    def knowledge(self, distance: int, seed: int) -> Knowledge:
        """What systems learn from the history at d = `distance`; each learns once, whatever is replayed afterwards."""
        return Knowledge(self.served, self.history, prefetch_distance=distance, store_capacity=STORE_CAPACITY, seed=seed)


def sample_of(trace: RoutingTrace, served_rows: int, history_rows: int, seed: int = 0) -> Sample:
    """Requests to serve and requests to know beforehand, never the same: the trace's own splits, or 3 and 7 of 10 by request.

    Args:
        served_rows, history_rows: about how many rows (tokens) of each are taken, whole requests drawn at random; a request that
            alone is longer is cut.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    served, history, notes = _split(trace, rng)
    taken = _drawn(served, served_rows, rng)
    if taken.num_rows < served.num_rows:
        notes.append(f"replayed: {_amount(taken)}, drawn at random from {_amount(served)}")
    if history is not None:
        known = _drawn(history, history_rows, rng)
        notes.append(f"history of learning systems: {_amount(known)} of {_amount(history)}, none of them replayed")
        history = known
    return Sample(taken, history, tuple(notes))


def _split(trace: RoutingTrace, rng: np.random.Generator) -> tuple[RoutingTrace, RoutingTrace | None, list[str]]:
    if {"history", "served"} <= set(trace.splits):
        return trace.split("served"), trace.split("history"), ["the trace's own splits separate history from served requests"]
    if trace.num_requests < FEWEST_REQUESTS:
        return trace, None, ["too few requests for a separate history: learning systems start empty"]
    order = rng.permutation(trace.num_requests)
    bound = round(_HISTORY_SHARE * trace.num_requests)
    return trace.select(np.sort(order[bound:])), trace.select(np.sort(order[:bound])), []


def _drawn(trace: RoutingTrace, num_rows: int, rng: np.random.Generator) -> RoutingTrace:
    """Whole requests at random, until there are so many rows; at least one, whose rows are cut at the end of an iteration."""
    if trace.num_rows <= num_rows:
        return trace
    order = rng.permutation(trace.num_requests)
    ends = np.cumsum(np.diff(trace.offsets)[order])
    count = max(1, int(np.searchsorted(ends, num_rows, side="right")))
    drawn = trace.select(np.sort(order[:count]))
    return drawn if drawn.num_rows <= num_rows or count > 1 else _cut(drawn, num_rows)


def _cut(trace: RoutingTrace, num_rows: int) -> RoutingTrace:
    """The first rows of a single request; of an iteration that does not fit, nothing, but of the first, which is cut itself."""
    step = trace.step
    bound = num_rows if step[num_rows] == step[0] else int(np.searchsorted(step, step[num_rows]))
    return trace.arranged(np.arange(bound), np.array([0, bound]))


def _amount(trace: RoutingTrace) -> str:
    return f"{trace.num_requests:,} request{'s' * (trace.num_requests != 1)} ({trace.num_rows:,} tokens)"
