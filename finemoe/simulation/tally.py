"""Counts of a replay, per layer and per request, and the report made from them."""

import numpy as np

from finemoe.policies.block import Block
from finemoe.report import Report, RequestReport
from finemoe.traces import PREFILL, RoutingTrace

_NAN = float("nan")


class Recall:
    """recall_at_k of DESIGN 4: the share of demanded experts that the last prediction before the gate ranks among as many top
    experts, over the predicted layers."""

    def __init__(self) -> None:
        self._recalled = self._ranked = 0

    def add(self, begins: np.ndarray, demanded: np.ndarray, targets: np.ndarray, probabilities: np.ndarray) -> None:
        """Add a block's demanded sets and predictions: the event that each is for (`targets_of`), [n], and its distribution,
        [n, J]."""
        predictions = np.flatnonzero(targets >= 0)
        if not len(predictions):
            return
        counts = np.diff(begins)
        last = np.full(len(counts), -1, dtype=np.int64)
        last[targets[predictions]] = predictions  # of equal targets, the later one stays
        owners = np.repeat(np.arange(len(counts)), counts)
        known = last[owners] >= 0
        ranks = _ranks(probabilities)[last[owners[known]], demanded[known]]
        self._recalled += int((ranks < counts[owners[known]]).sum())
        self._ranked += int(known.sum())

    @property
    def value(self) -> float:
        """NaN if nothing was predicted."""
        return self._recalled / self._ranked if self._ranked else _NAN


class Tally:
    """Hits, accesses, loads and times of one cache over a trace; loads in experts."""

    def __init__(self, trace: RoutingTrace) -> None:
        shape = (trace.num_requests, trace.num_layers)
        self._hits, self._late, self._accesses = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        self._moved = np.zeros((trace.num_requests, 3), dtype=np.int64)  # on demand, ahead, evicted unused
        self._steps = np.zeros((trace.num_requests, 2), dtype=np.int64)  # prefills, decode steps
        self._seconds = np.full((trace.num_requests, 2), _NAN)  # their durations
        self._stalls = np.zeros(trace.num_requests)

    def add(self, block: Block, begins: np.ndarray, counts: np.ndarray) -> None:
        """Add a block's counts [E, 5]: hits, late, loads on demand, prefetch loads, and evicted unused, of each event."""
        shape = (block.num_iterations, self._hits.shape[1])
        np.add.at(self._hits, block.requests, counts[:, 0].reshape(shape))
        np.add.at(self._late, block.requests, counts[:, 1].reshape(shape))
        np.add.at(self._moved, block.requests, counts[:, 2:].reshape(*shape, 3).sum(axis=1))
        np.add.at(self._accesses, block.requests, np.diff(begins).reshape(shape))
        np.add.at(self._steps, (block.requests, np.where(block.is_prefill, 0, 1)), 1)

    def add_times(self, block: Block, durations_s: np.ndarray, stalls_s: np.ndarray) -> None:
        """Add the duration of each iteration of a block, and how much of it was waiting for weights, [n] each."""
        places = (block.requests, np.where(block.is_prefill, 0, 1))
        self._seconds[places] = np.nan_to_num(self._seconds[places])
        np.add.at(self._seconds, places, durations_s)
        np.add.at(self._stalls, block.requests, stalls_s)

    def report(
        self,
        policy: str,
        eviction: str,
        memory_bytes: int,
        expert_bytes: int,
        recall: float,
        num_useful: int,
        num_unused_resident: int,
    ) -> Report:
        """The report of all counts, with bytes = experts x expert_bytes; times are NaN if none were added."""
        seconds, steps = np.nansum(self._seconds, axis=0), self._steps.sum(axis=0)
        is_timed = not np.isnan(self._seconds).all()
        return Report(
            policy=policy,
            eviction=eviction,
            expert_memory_bytes=memory_bytes,
            recall_at_k=recall,
            demand_bytes=int(self._moved[:, 0].sum()) * expert_bytes,
            prefetched_bytes=int(self._moved[:, 1].sum()) * expert_bytes,
            wasted_bytes=int(self._moved[:, 2].sum()) * expert_bytes,
            useful_bytes=num_useful * expert_bytes,
            unused_resident_bytes=num_unused_resident * expert_bytes,
            stall_s=float(self._stalls.sum()),
            ttft_s=float(seconds[PREFILL] / steps[PREFILL]) if is_timed and steps[PREFILL] else _NAN,
            tpot_s=float(seconds[1] / steps[1]) if is_timed and steps[1] else _NAN,
            num_prefills=int(steps[PREFILL]),
            num_decode_steps=int(steps[1]),
            skipped_iterations=0,
            layer_hits=tuple(self._hits.sum(axis=0).tolist()),
            layer_late=tuple(self._late.sum(axis=0).tolist()),
            layer_misses=tuple((self._accesses - self._hits - self._late).sum(axis=0).tolist()),
            requests=tuple(self._request(number, expert_bytes) for number in range(len(self._hits))),
        )

    def _request(self, number: int, expert_bytes: int) -> RequestReport:
        hits, late, accesses = (int(counts[number].sum()) for counts in (self._hits, self._late, self._accesses))
        on_demand, ahead, wasted = (self._moved[number] * expert_bytes).tolist()
        num_decode_steps = int(self._steps[number, 1])
        return RequestReport(
            accesses=accesses,
            hits=hits,
            late=late,
            misses=accesses - hits - late,
            prefetched_bytes=ahead,
            demand_bytes=on_demand,
            wasted_bytes=wasted,
            stall_s=float(self._stalls[number]),
            ttft_s=float(self._seconds[number, PREFILL]),
            tpot_s=float(self._seconds[number, 1] / num_decode_steps) if num_decode_steps else _NAN,
            num_decode_steps=num_decode_steps,
        )


def _ranks(rows: np.ndarray) -> np.ndarray:
    """Rank of every expert in its row by descending probability, equal ones by id, [n, J]."""
    order = np.argsort(-rows, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1])[None], axis=1)
    return ranks
