"""The part of a trace to replay and the part known beforehand; long traces are sampled, and notes record what was taken."""

from dataclasses import dataclass

import numpy as np

from finemoe.simulation.knowledge import Knowledge
from finemoe.traces import DECODE, RoutingTrace

FEWEST_REQUESTS = 5  # needed to serve a few requests and use the others as history
STORE_CAPACITY = 1000  # C, maps
_HISTORY_SHARE = 0.7
_LEAST_CUT = 0.2  # minimum length of a cut request, as a share of the rows taken


@dataclass(frozen=True)
class Sample:
    """The requests that advice is based on.

    Attributes:
        served: the requests to replay. history: other requests, known to learning systems beforehand; None if there are too few,
            in which case such systems start empty. notes: how the sample was taken.
    """

    served: RoutingTrace
    history: RoutingTrace | None
    notes: tuple[str, ...]

    def knowledge(self, distance: int, seed: int) -> Knowledge:
        """What systems learn from the history at d = `distance`; each learns only once, for all replays."""
        return Knowledge(self.served, self.history, prefetch_distance=distance, store_capacity=STORE_CAPACITY, seed=seed)


def sample_of(trace: RoutingTrace, served_rows: int, history_rows: int, seed: int = 0) -> Sample:
    """Split requests into served and history, without overlap: by the trace's own splits, or 3 and 7 of 10 at random.

    Args:
        served_rows, history_rows: maximum number of rows (tokens) of each. Requests are drawn at random; the last one may be cut.
        seed: seed of the draw.
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
    """Random whole requests that fit into `num_rows` rows. The first one that does not fit is cut to the remaining rows, if these
    are more than a fifth of all: long requests are then as likely as short ones."""
    if trace.num_rows <= num_rows:
        return trace
    order, lengths = rng.permutation(trace.num_requests), np.diff(trace.offsets)
    count = int(np.searchsorted(np.cumsum(lengths[order]), num_rows, side="right"))
    left = num_rows - int(lengths[order[:count]].sum())
    if left <= _LEAST_CUT * num_rows:
        return trace.select(np.sort(order[:count]))
    chosen = np.sort(order[: count + 1])
    pieces = [_beginning(trace, request, left if request == order[count] else lengths[request]) for request in chosen.tolist()]
    return trace.arranged(np.concatenate(pieces), np.cumsum([0, *map(len, pieces)]))


def _beginning(trace: RoutingTrace, request: int, num_rows: int) -> np.ndarray:
    """The first rows of a request, at most `num_rows`: whole iterations; if tokens were decoded, at most half from the prompt."""
    rows = np.arange(*trace.rows_of(request).indices(trace.num_rows))
    if len(rows) <= num_rows:
        return rows
    decoded = rows[trace.phase[rows] == DECODE]
    prompt = rows[: min(len(rows) - len(decoded), max(1, num_rows // 2) if len(decoded) else num_rows)]
    kept = decoded[: num_rows - len(prompt)]
    if len(kept) < len(decoded) and len(kept):
        is_next = trace.step[kept] == trace.step[decoded[len(kept)]]  # keep iterations whole, unless there is only one
        kept = kept if is_next.all() else kept[~is_next]
    return np.concatenate([prompt, kept])


def _amount(trace: RoutingTrace) -> str:
    return f"{trace.num_requests:,} request{'s' * (trace.num_requests != 1)} ({trace.num_rows:,} tokens)"
