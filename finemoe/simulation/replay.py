"""`finemoe.replay`: a policy on recorded routing, with an instant link: exact accounting of hits and bytes (DESIGN 3 and 4)."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from finemoe.cache.compiled import RULE_CODES, CompiledCache, Events
from finemoe.errors import FinemoeError
from finemoe.policies import make_policy
from finemoe.policies.base import PolicySetup
from finemoe.report import Report, RequestReport
from finemoe.simulation.events import FutureUses, Iterations, demanded_sets, iteration_blocks
from finemoe.simulation.plan import Predictions
from finemoe.simulation.planner import predict
from finemoe.traces import PREFILL, RoutingTrace
from finemoe.units import parse_bytes

_BLOCK_ROWS = 4096
_NAN = float("nan")


def replay(
    trace: RoutingTrace,
    policy: str = "finemoe",
    expert_memory: float | int | str = 0.25,
    hardware: str | None = None,
    history: Any = None,
    eviction: str | None = None,
    *,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    expert_bytes: int | None = None,
    seed: int = 0,
) -> Report:
    """Replay a trace under a policy with one device's expert cache.

    Args:
        trace: recorded routing; its requests run one after the other over one cache, cold at the start.
        policy: "finemoe" or "on-demand"; eviction: overrides its rule, "belady" included.
        expert_memory: a share in (0, 1] of all routed experts, or bytes (an int or a text with a unit) where `expert_bytes` is
        given. hardware: None, an instant link.
        history: a RoutingTrace or ExpertMapStore of other requests; None learns online.
        prefetch_distance, store_capacity, seed: as in `finemoe.offload`.
        expert_bytes: size of one expert; without it, bytes in the report are counted in experts.
    Raises:
        FinemoeError: a name is unknown, an option is out of range, or a testbed is asked for.
    """
    if hardware is not None:
        raise FinemoeError(f"hardware {hardware!r}: replay has an instant link only (hardware=None)")
    setup = _setup(trace, history, prefetch_distance, store_capacity, seed)
    system = make_policy(policy, setup)
    rule = eviction or system.default_eviction
    if rule not in RULE_CODES:
        raise FinemoeError(f"unknown eviction rule {rule!r}; known: {', '.join(sorted(RULE_CODES))}")
    num_slots = slots_of(expert_memory, trace.num_layers * trace.num_experts, expert_bytes)
    cache = CompiledCache(rule, trace.num_layers, trace.num_experts, num_slots)
    tally = _Tally(trace)
    for block, begins, demanded, following in _blocks(trace, rule == "belady"):
        predictions = predict(system, trace, block)
        outcome = cache.run(_events(trace, block, begins, demanded, following, predictions))
        tally.add(block, begins, demanded, outcome, predictions)
    return tally.report(cache, policy, rule, num_slots * (expert_bytes or 1), expert_bytes or 1)


def slots_of(expert_memory: float | int | str, num_experts: int, expert_bytes: int | None) -> int:
    """How many experts a memory size holds.

    Raises:
        FinemoeError: it is neither a share in (0, 1] nor bytes, or bytes come without `expert_bytes`, or not even one fits.
    """
    if isinstance(expert_memory, float):
        if not 0 < expert_memory <= 1:
            raise FinemoeError(f"expert_memory as a share must lie in (0, 1], not {expert_memory}")
        return max(1, round(expert_memory * num_experts))
    if isinstance(expert_memory, bool) or not isinstance(expert_memory, int | str):
        raise FinemoeError(f"expert_memory must be a share, or bytes with a unit, not {expert_memory!r}")
    if expert_bytes is None:
        raise FinemoeError(f"expert_memory is {expert_memory!r}: bytes need expert_bytes; write 1.0 for all experts")
    num_bytes = parse_bytes(expert_memory) if isinstance(expert_memory, str) else expert_memory
    if num_bytes < expert_bytes:
        raise FinemoeError(f"expert_memory is {num_bytes} bytes, but one expert takes {expert_bytes}")
    return min(num_experts, num_bytes // expert_bytes)


def _setup(trace: RoutingTrace, history: Any, distance: int | None, capacity: int, seed: int) -> PolicySetup:
    return PolicySetup(
        num_layers=trace.num_layers,
        num_experts=trace.num_experts,
        top_k=trace.top_k,
        embedding_dim=0 if trace.embedding_table is None else trace.embedding_table.shape[1],
        prefetch_distance=min(3, trace.num_layers) if distance is None else distance,
        store_capacity=capacity,
        history=history,
        model=trace.model,
        seed=seed,
    )


def _blocks(trace: RoutingTrace, needs_future: bool) -> Iterator[tuple[Iterations, np.ndarray, np.ndarray, np.ndarray]]:
    """(block, begins, demanded, next uses) in order; the next uses are zeros unless the future is needed."""
    if not needs_future:
        for block in iteration_blocks(trace, _BLOCK_ROWS):
            begins, demanded = demanded_sets(trace, block)
            yield block, begins, demanded, np.zeros(len(demanded), dtype=np.int64)
        return
    blocks = list(iteration_blocks(trace, _BLOCK_ROWS))
    firsts = np.cumsum([0, *(len(block) * trace.num_layers for block in blocks)])
    future = FutureUses(trace.num_layers, trace.num_experts)
    with tempfile.TemporaryFile() as file:  # the future of a long trace does not fit into memory
        sizes = []
        for block, first_event in zip(reversed(blocks), reversed(firsts[:-1].tolist()), strict=True):
            following = future.before(*demanded_sets(trace, block), first_event)
            file.write(following.tobytes())
            sizes.append(following.nbytes)
        for block, size in zip(blocks, reversed(sizes), strict=True):
            begins, demanded = demanded_sets(trace, block)
            file.seek(-size, os.SEEK_CUR)
            following = np.frombuffer(file.read(size), dtype=np.int64)
            file.seek(-size, os.SEEK_CUR)
            yield block, begins, demanded, following


def _events(
    trace: RoutingTrace,
    block: Iterations,
    begins: np.ndarray,
    demanded: np.ndarray,
    following: np.ndarray,
    predictions: Predictions,
) -> Events:
    num_events = len(block) * trace.num_layers
    layers = np.tile(np.arange(trace.num_layers), len(block))
    return Events(layers, layers == 0, begins, demanded, following, *predictions.arrays(num_events, trace.num_layers))


class _Tally:
    """Counts of a replay, by layer and by request."""

    def __init__(self, trace: RoutingTrace) -> None:
        self._num_layers, self._num_experts = trace.num_layers, trace.num_experts
        self._hits = np.zeros((trace.num_requests, trace.num_layers), dtype=np.int64)
        self._accesses = np.zeros_like(self._hits)
        self._moved = np.zeros((trace.num_requests, 3), dtype=np.int64)  # on demand, ahead, evicted unused
        self._steps = np.zeros((trace.num_requests, 2), dtype=np.int64)  # prefills, decode steps
        self._recalled = self._ranked = 0

    def add(self, block: Iterations, begins: np.ndarray, demanded: np.ndarray, outcome: np.ndarray, told: Predictions) -> None:
        shape = (len(block), self._num_layers)
        np.add.at(self._hits, block.requests, outcome[:, 0].reshape(shape))
        np.add.at(self._moved, block.requests, outcome[:, 1:].reshape(*shape, 3).sum(axis=1))
        np.add.at(self._accesses, block.requests, np.diff(begins).reshape(shape))
        np.add.at(self._steps, (block.requests, np.where(block.is_prefill, 0, 1)), 1)
        self._count_recall(begins, demanded, told)

    def _count_recall(self, begins: np.ndarray, demanded: np.ndarray, told: Predictions) -> None:
        """For the last prediction of each event before its gate: demanded experts among as many top predictions (DESIGN 4)."""
        if not len(told.moments):
            return
        targets = told.moments // 2 // self._num_layers * self._num_layers + told.layers
        last = np.full(len(begins) - 1, -1, dtype=np.int64)
        last[targets] = np.arange(len(targets))  # the later of equal targets stays
        counts = np.diff(begins)
        owners = np.repeat(np.arange(len(counts)), counts)
        known = last[owners] >= 0
        ranks = np.empty_like(told.rows, dtype=np.int64)
        order = np.argsort(-told.rows, axis=1, kind="stable")
        np.put_along_axis(ranks, order, np.arange(self._num_experts)[None], axis=1)
        ranks = ranks[last[owners[known]], demanded[known]]
        self._recalled += int((ranks < counts[owners[known]]).sum())
        self._ranked += int(known.sum())

    def report(self, cache: CompiledCache, policy: str, rule: str, memory_bytes: int, expert_bytes: int) -> Report:
        hits, accesses = int(self._hits.sum()), int(self._accesses.sum())
        return Report(
            policy=policy,
            eviction=rule,
            expert_memory_bytes=memory_bytes,
            accesses=accesses,
            hits=hits,
            late=0,
            misses=accesses - hits,
            hit_rate=hits / accesses if accesses else _NAN,
            recall_at_k=self._recalled / self._ranked if self._ranked else _NAN,
            demand_bytes=int(self._moved[:, 0].sum()) * expert_bytes,
            prefetched_bytes=int(self._moved[:, 1].sum()) * expert_bytes,
            wasted_bytes=int(self._moved[:, 2].sum()) * expert_bytes,
            useful_bytes=cache.num_useful * expert_bytes,
            unused_resident_bytes=cache.num_unused_resident * expert_bytes,
            stall_s=0.0,
            ttft_s=_NAN,
            tpot_s=_NAN,
            num_prefills=int(self._steps[:, PREFILL].sum()),
            num_decode_steps=int(self._steps[:, 1].sum()),
            skipped_iterations=0,
            layer_hits=tuple(self._hits.sum(axis=0).tolist()),
            layer_late=(0,) * self._num_layers,
            layer_misses=tuple((self._accesses - self._hits).sum(axis=0).tolist()),
            requests=tuple(self._request(number, expert_bytes) for number in range(len(self._hits))),
        )

    def _request(self, number: int, expert_bytes: int) -> RequestReport:
        hits, accesses = int(self._hits[number].sum()), int(self._accesses[number].sum())
        on_demand, ahead, wasted = (self._moved[number] * expert_bytes).tolist()
        return RequestReport(
            accesses=accesses,
            hits=hits,
            late=0,
            misses=accesses - hits,
            prefetched_bytes=ahead,
            demand_bytes=on_demand,
            wasted_bytes=wasted,
            stall_s=0.0,
            ttft_s=_NAN,
            tpot_s=_NAN,
            num_decode_steps=int(self._steps[number, 1]),
        )
