"""How a server runs recorded requests: one after the other, in batches, or as they arrive, with the lengths that they have there.

Batches and long requests are assembled from recorded iterations, never invented.
"""

from dataclasses import dataclass

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.traces import DECODE, PREFILL, RoutingTrace
from finemoe.units import is_whole


@dataclass(frozen=True)
class Arrangement:
    """Requests in the order in which a server runs them.

    Attributes:
        trace: their routing; a batch counts as one request. contexts: [T] number of tokens that each row attends to.
        arrivals_s: [R] arrival time of each request, ascending; a request starts no earlier.
    """

    trace: RoutingTrace
    contexts: np.ndarray
    arrivals_s: np.ndarray

    @classmethod
    def one_by_one(cls, trace: RoutingTrace) -> "Arrangement":
        """Requests one after the other, as recorded."""
        return cls(trace, _contexts(trace.offsets), np.zeros(trace.num_requests))

    @classmethod
    def side_by_side(cls, trace: RoutingTrace, batch_size: int) -> "Arrangement":
        """Batches of consecutive requests. Their first iterations run together, then their second ones, and so on; a finished
        request leaves the batch (static batching).

        Raises:
            FinemoeError: the batch size is not a positive whole number.
        """
        if not (is_whole(batch_size) and batch_size >= 1):
            raise FinemoeError(f"batch_size is {batch_size!r}; it must be a whole number, at least 1")
        requests = np.repeat(np.arange(trace.num_requests), np.diff(trace.offsets))
        order = np.lexsort((requests, trace.step, requests // batch_size))
        ends = np.append(np.arange(0, trace.num_requests, batch_size), trace.num_requests)
        offsets = trace.offsets[ends]
        return cls(trace.arranged(order, offsets), _contexts(trace.offsets)[order], np.zeros(len(offsets) - 1))

    @classmethod
    def arriving(
        cls, trace: RoutingTrace, arrivals_s: np.ndarray, prompt_tokens: np.ndarray, new_tokens: np.ndarray, seed: int = 0
    ) -> "Arrangement":
        """Requests with given arrivals and lengths, assembled from the iterations of a shorter trace.

        Args:
            trace: recorded requests with prefills. A new request takes as many prompt tokens as it needs from one of them and
                those after it, and likewise for its decode iterations.
            arrivals_s: [R] arrival times, ascending. prompt_tokens, new_tokens: [R] tokens of each prompt and output.
            seed: draws the recorded request that each new request starts from.
        Raises:
            FinemoeError: the trace has no prompt tokens or no decode iterations.
        """
        is_prompt = trace.phase == PREFILL
        if is_prompt.all() or not is_prompt.any():
            raise FinemoeError("the trace needs prompt tokens and decode iterations to assemble longer requests from them")
        firsts = np.random.default_rng(seed).integers(0, trace.num_requests, len(arrivals_s))
        pieces, lengths = [], []
        for first, num_prompt, num_new in zip(trace.offsets[firsts], prompt_tokens, new_tokens, strict=True):
            prompt = _following(is_prompt, first, num_prompt)
            pieces += [prompt, _following(~is_prompt, first, num_new - 1)]
            lengths.append((len(prompt), len(pieces[-1])))
        offsets = np.cumsum([0, *(sum(pair) for pair in lengths)])
        step = np.concatenate([np.maximum(np.arange(prompt + new) - prompt + 1, 0) for prompt, new in lengths])
        phase = np.where(step == 0, PREFILL, DECODE)
        made = trace.arranged(np.concatenate(pieces), offsets, step.astype(np.int32), phase.astype(np.uint8))
        return cls(made, _contexts(offsets), np.asarray(arrivals_s, dtype=float))


def _contexts(offsets: np.ndarray) -> np.ndarray:
    """Number of tokens that each row attends to: its request up to and including itself."""
    lengths = np.diff(offsets)
    contexts: np.ndarray = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + 1
    return contexts


def _following(is_wanted: np.ndarray, first: int, count: int) -> np.ndarray:
    """`count` wanted rows starting at row `first`, wrapping around at the end."""
    wanted = np.flatnonzero(is_wanted)
    return wanted[(np.searchsorted(wanted, first) + np.arange(count)) % len(wanted)]
