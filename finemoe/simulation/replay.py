"""`finemoe.replay`: a policy on recorded routing (DESIGN 3, 4 and 6).

With an instant link it is exact accounting of hits and bytes; on a described testbed it takes virtual time.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finemoe.cache.capacity import slots_per_device
from finemoe.cache.compiled import RULE_CODES, CompiledCache, Events
from finemoe.cache.placement import owners_of
from finemoe.errors import FinemoeError
from finemoe.policies import make_policy
from finemoe.policies.base import Policy, PolicySetup
from finemoe.report import Report
from finemoe.simulation.clockwork import Durations
from finemoe.simulation.cost import CostModel, size_of
from finemoe.simulation.events import FutureUses, Iterations, demanded_sets, iteration_blocks
from finemoe.simulation.plan import Predictions
from finemoe.simulation.planner import predict
from finemoe.simulation.tally import Recall, Tally
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import ModelledPace, Pace, TimedCache
from finemoe.traces import RoutingTrace

_MOST_ROWS, _MOST_VALUES = 4096, 1 << 23  # of a block of iterations: rows, and gate values in them


def replay(
    trace: RoutingTrace,
    policy: str = "finemoe",
    expert_memory: float | int | str = 0.25,
    hardware: str | None = None,
    history: Any = None,
    eviction: str | None = None,
    **options: Any,
) -> Report:
    """Replay a trace under a policy.

    Args:
        trace: recorded routing; its requests run one after the other over one cache, cold at the start.
        policy: a system of the paper, "on-demand", "no-offload" or "oracle". eviction: overrides its rule, "belady" included.
        expert_memory: a share in (0, 1] of all routed experts, or bytes per device (an int or a text with a unit) where the size
            of an expert is known.
        hardware: a testbed's name in data/hardware or the path of a YAML file, for virtual time; None, an instant link.
        history: a RoutingTrace (or, for finemoe, an ExpertMapStore) of other requests; None learns online.
        options: as in `sweep`.
    Raises:
        FinemoeError: a name is unknown, an option is out of range, the trace lacks what the policy reads, or the testbed has not
            the memory.
    """
    return sweep(trace, policy, [expert_memory], [eviction], history, hardware=hardware, **options)[0]


def sweep(
    trace: RoutingTrace,
    policy: str,
    expert_memories: Sequence[float | int | str],
    evictions: Sequence[str | None] = (None,),
    history: Any = None,
    *,
    hardware: str | None = None,
    model: str | None = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    devices: int | None = None,
    expert_bytes: int | None = None,
    link: str | None = None,
    host_memory: int | str | None = None,
    seed: int = 0,
    **policy_options: Any,
) -> list[Report]:
    """As `replay` at every memory size under every eviction rule (None: the policy's own), sizes first; the policy is heard once
    for all of them.

    Args:
        model: with hardware, whose sizes are meant (a published configuration's name, a folder, config.json or a hub id); None:
            the published model that has the trace's layers and experts.
        prefetch_distance, store_capacity, seed: as in `finemoe.offload`.
        devices: how many share the experts, round-robin; by default one, or as many as the testbed has.
        expert_bytes: without hardware, the size of one expert; by default bytes in the report are counted in experts.
        link, host_memory: of the live engine only; a testbed describes its own.
        policy_options: the system's own, such as promoe's `predictor`.
    """
    _require_sensible(devices, expert_bytes, link, host_memory)
    setup = replay_setup(trace, history, prefetch_distance, store_capacity, seed)
    system = make_policy(policy, setup, is_replay=True, **policy_options)
    choices = [
        (memory, _known_rule(eviction or system.default_eviction))
        for memory, eviction in itertools.product(expert_memories, evictions)
    ]
    if hardware is None:
        num_devices = 1 if devices is None else devices
        return _run(
            trace, policy, system, [_Cache(trace, system, memory, rule, num_devices, expert_bytes) for memory, rule in choices]
        )
    testbed = Testbed.load(hardware)
    testbed = testbed if devices is None else replace(testbed, devices=devices)
    cost = CostModel(size_of(model, trace.num_layers, trace.num_experts, trace.top_k), testbed)
    pace = ModelledPace(cost, system)
    for memory, _ in choices:
        pace.require_room(1.0 if system.holds_everything else memory, trace.num_layers * trace.num_experts)
    return paced(trace, policy, system, choices, pace)


def paced(
    trace: RoutingTrace, name: str, policy: Policy, choices: Sequence[tuple[float | int | str, str]], pace: Pace
) -> list[Report]:
    """Replay in virtual time at a given pace, for every choice of (expert memory, eviction rule)."""
    caches = [TimedCache(trace, policy, memory, rule, pace) for memory, rule in choices]
    return _run(trace, name, policy, caches, pace)


def replay_setup(
    trace: RoutingTrace,
    history: Any = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    seed: int = 0,
) -> PolicySetup:
    """What a policy is told about a trace's model."""
    return PolicySetup(
        num_layers=trace.num_layers,
        num_experts=trace.num_experts,
        top_k=trace.top_k,
        embedding_dim=0 if trace.embedding_table is None else trace.embedding_table.shape[1],
        prefetch_distance=min(3, trace.num_layers) if prefetch_distance is None else prefetch_distance,
        store_capacity=store_capacity,
        history=history,
        model=trace.model,
        seed=seed,
    )


class _Cache:
    """The caches of all devices under one rule, at one size, with their counts."""

    def __init__(
        self,
        trace: RoutingTrace,
        policy: Policy,
        expert_memory: float | int | str,
        rule: str,
        num_devices: int,
        expert_bytes: int | None,
    ) -> None:
        num_layers, num_experts = trace.num_layers, trace.num_experts
        memory = 1.0 if policy.holds_everything else expert_memory
        slots = slots_per_device(memory, expert_bytes, num_layers * num_experts, num_devices)
        self.rule, self._expert_bytes, self._memory_slots = rule, expert_bytes or 1, slots * num_devices
        self._owners = owners_of([num_experts] * num_layers, num_devices).reshape(-1)
        self._caches = [CompiledCache(rule, num_layers, num_experts, slots) for _ in range(num_devices)]
        self._tally = Tally(trace)
        if policy.holds_everything:
            for device, cache in enumerate(self._caches):
                cache.hold(np.flatnonzero(self._owners == device))

    def foresee(self, first_uses: np.ndarray) -> None:
        """When every expert is demanded first, [L·J] event numbers."""
        for cache in self._caches:
            cache.foresee(first_uses)

    def run(self, block: Iterations, events: Events, durations: Durations | None = None) -> None:
        """Go through a block of events; nothing takes time."""
        if len(self._caches) == 1:
            outcome = self._caches[0].run(events)
        else:
            parts = [events.part(self._owners == device) for device in range(len(self._caches))]
            outcome = np.sum([cache.run(part) for cache, part in zip(self._caches, parts, strict=True)], axis=0)
        self._tally.add(block, events.begins, np.insert(outcome, 1, 0, axis=1))  # nothing is late

    def report(self, policy: str, recall: float) -> Report:
        """The counts so far."""
        useful = sum(cache.num_useful for cache in self._caches)
        unused = sum(cache.num_unused_resident for cache in self._caches)
        memory_bytes = self._memory_slots * self._expert_bytes
        return self._tally.report(policy, self.rule, memory_bytes, self._expert_bytes, recall, useful, unused)


def _require_sensible(devices: int | None, expert_bytes: int | None, link: str | None, host_memory: int | str | None) -> None:
    for name, value in (("devices", devices), ("expert_bytes", expert_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise FinemoeError(f"{name} is {value!r}; in a replay it is a whole number, at least 1")
    if link is not None or host_memory is not None:
        raise FinemoeError("link and host_memory belong to the live engine; a replay has an instant link, or that of hardware=")


def _block_rows(trace: RoutingTrace) -> int:
    return max(64, min(_MOST_ROWS, _MOST_VALUES // (trace.num_layers * trace.num_experts)))


def _known_rule(name: str) -> str:
    if name not in RULE_CODES:
        raise FinemoeError(f"unknown eviction rule {name!r}; known: {', '.join(sorted(RULE_CODES))}")
    return name


def _run(
    trace: RoutingTrace, name: str, policy: Policy, caches: "Sequence[_Cache | TimedCache]", pace: Pace | None = None
) -> list[Report]:
    recall = Recall(trace.num_layers)
    with _Future(trace, any(cache.rule == "belady" for cache in caches)) as future:
        if future.is_known:
            for cache in caches:
                cache.foresee(future.first_uses)
        for block in iteration_blocks(trace, _block_rows(trace)):
            begins, demanded = demanded_sets(trace, block)
            predictions = predict(policy, trace, block, begins, demanded)
            recall.add(begins, demanded, predictions)
            events = _events(trace, block, begins, demanded, future.take(len(demanded)), predictions)
            durations = None if pace is None else pace.durations(trace, block, begins, demanded)
            for cache in caches:
                cache.run(block, events, durations)
            trace.release_pages()
    return [cache.report(name, recall.value) for cache in caches]


def _events(
    trace: RoutingTrace,
    block: Iterations,
    begins: np.ndarray,
    demanded: np.ndarray,
    next_use: np.ndarray,
    predictions: Predictions,
) -> Events:
    num_events = len(block) * trace.num_layers
    layers = np.tile(np.arange(trace.num_layers), len(block))
    return Events(layers, layers == 0, begins, demanded, next_use, *predictions.arrays(num_events, trace.num_layers))


class _Future:
    """When every demanded expert is demanded next, found from the trace's end to its beginning and kept on disk meanwhile: the
    future of a long trace does not fit into memory.

    Args:
        is_known: whether anybody asks; else nothing is computed and all next uses are zero.
    """

    def __init__(self, trace: RoutingTrace, is_known: bool) -> None:
        self.is_known = is_known
        self.first_uses = np.zeros(0, dtype=np.int64)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        if is_known:
            self._look_ahead(trace)

    def __enter__(self) -> "_Future":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, count: int) -> np.ndarray:
        """The next uses of the next `count` demanded experts, in the trace's order."""
        if not self.is_known:
            return np.zeros(count, dtype=np.int64)
        self._file.seek(-8 * count, os.SEEK_CUR)
        found = np.frombuffer(self._file.read(8 * count), dtype=np.int64)
        self._file.seek(-8 * count, os.SEEK_CUR)
        return found

    def _look_ahead(self, trace: RoutingTrace) -> None:
        blocks = list(iteration_blocks(trace, _block_rows(trace)))
        firsts = np.cumsum([0, *(len(block) * trace.num_layers for block in blocks)])
        future = FutureUses(trace.num_layers, trace.num_experts)
        for block, first_event in _backwards(blocks, firsts):
            self._file.write(future.before(*demanded_sets(trace, block), first_event).tobytes())
            trace.release_pages()
        self.first_uses = future.first_uses


def _backwards(blocks: list[Iterations], firsts: np.ndarray) -> Iterator[tuple[Iterations, int]]:
    return zip(reversed(blocks), reversed(firsts[:-1].tolist()), strict=True)
