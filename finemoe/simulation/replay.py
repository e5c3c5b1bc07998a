"""`finemoe.replay`: run a policy on recorded routing (DESIGN 3, 4 and 6).

With an instant link, it counts hits and bytes exactly. On a described testbed, it simulates virtual time.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from finemoe.cache.rules import rule_named
from finemoe.errors import FinemoeError
from finemoe.policies import make_policy
from finemoe.policies.base import Policy, PolicySetup
from finemoe.report import Report
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.asking import ask, streamed
from finemoe.simulation.cost import CostModel, ModelSize, size_of
from finemoe.simulation.events import block_rows, demanded_sets, iteration_blocks
from finemoe.simulation.future import Future
from finemoe.simulation.instant import InstantCache
from finemoe.simulation.moments import events_of, targets_of
from finemoe.simulation.tally import Recall
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import ModelledPace, Pace, TimedCache
from finemoe.traces import RoutingTrace
from finemoe.units import is_whole

_COMPARED_ROWS = 64  # compared to distinguish two requests of one name


def replay(
    trace: RoutingTrace,
    policy: str = "finemoe",
    expert_memory: float | int | str = 0.25,
    hardware: str | Path | Testbed | None = None,
    history: Any = None,
    eviction: str | None = None,
    **options: Any,
) -> Report:
    """Replay a trace under a policy.

    Args:
        trace: recorded routing; its requests run one after the other over one cache, which is empty at the start.
        policy: a system of the paper, "on-demand", "no-offload", "oracle", or your own (docs/add_a_system.md).
        expert_memory: a share in (0, 1] of all routed experts, or bytes per device (an int or a string with a unit) if the size
            of an expert is known.
        hardware: for virtual time, the name of a testbed in data/hardware, the path of a YAML file, or a Testbed; None for an
            instant link.
        history: a RoutingTrace (or, for finemoe, an ExpertMapStore; for finemoe-plus, a Forecaster) of other requests; None to
            learn online.
        eviction: an eviction rule instead of the policy's own, "belady" included.
        options: see `sweep`.
    Returns:
        The report with hits, bytes and, with hardware, times.
    Raises:
        FinemoeError: a name is unknown, an option is out of range, the trace lacks what the policy reads, or the testbed has too
            little memory.
    """
    return sweep(trace, policy, [expert_memory], [eviction], history, hardware=hardware, **options)[0]


def sweep(
    trace: RoutingTrace,
    policy: str,
    expert_memories: Sequence[float | int | str],
    evictions: Sequence[str | None] = (None,),
    history: Any = None,
    *,
    hardware: str | Path | Testbed | None = None,
    model: str | ModelSize | None = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    devices: int | None = None,
    expert_bytes: int | None = None,
    link: str | None = None,
    host_memory: int | str | None = None,
    seed: int = 0,
    batch_size: int = 1,
    arrangement: Arrangement | None = None,
    stream_prompts_from: int | None = None,
    progress: bool = False,
    **policy_options: Any,
) -> list[Report]:
    """Like `replay`, at every memory size under every eviction rule (None: the policy's own), sizes first. The policy is asked
    once for all of them.

    Args:
        model: with hardware, the model that supplies sizes (name of a published configuration, a folder, config.json or a hub id,
            or a `ModelSize`); None: the published model with the trace's layers and experts.
        prefetch_distance, store_capacity, seed: as in `finemoe.offload`.
        devices: number of devices that share the experts, round-robin; by default one, or as many as the testbed has.
        expert_bytes: without hardware, the size of one expert; by default, bytes in the report are counted in experts.
        link, host_memory: only for the live engine; a testbed describes its own.
        batch_size: number of consecutive requests that run together; a batch counts as one request.
        arrangement: order, arrival and length of requests, instead of `batch_size`; `trace` is then its trace.
        stream_prompts_from: as in `finemoe.offload`; None, the default, is the system as published.
        progress: show a progress bar.
        policy_options: options of the policy, such as promoe's `predictor`.
    """
    if not isinstance(trace, RoutingTrace):
        raise FinemoeError(f"replay takes a RoutingTrace, not {type(trace).__name__}; RoutingTrace.load reads one from a file")
    _require_sensible(devices, expert_bytes, link, host_memory)
    _require_effect(hardware, model, expert_bytes)
    _require_others(history, trace)
    arrangement = arrangement or _arranged(trace, batch_size)
    trace = arrangement.trace
    setup = replay_setup(trace, history, prefetch_distance, store_capacity, seed, stream_prompts_from)
    system = make_policy(policy, setup, is_replay=True, **policy_options)
    choices = [
        (memory, eviction or system.default_eviction) for memory, eviction in itertools.product(expert_memories, evictions)
    ]
    for _, eviction in choices:
        rule_named(eviction, is_replay=True)  # raises if there is none
    if hardware is None:
        num_devices = 1 if devices is None else devices
        caches = [InstantCache(trace, system, memory, rule, num_devices, expert_bytes) for memory, rule in choices]
        reports = _run(trace, policy, system, caches, progress=progress)
    else:
        testbed = Testbed.load(hardware)
        testbed = testbed if devices is None else replace(testbed, devices=devices)
        cost = CostModel(size_of(model, trace.num_layers, trace.num_experts, trace.top_k), testbed)
        pace = ModelledPace(cost, arrangement)
        for memory, _ in choices:
            pace.require_room(1.0 if system.holds_everything else memory)
        reports = paced(trace, policy, system, choices, pace, progress)
    if system.saves:
        system.save()
    return reports


def paced(
    trace: RoutingTrace,
    name: str,
    policy: Policy,
    choices: Sequence[tuple[float | int | str, str]],
    pace: Pace,
    progress: bool = False,
    first_held: Sequence[int] | np.ndarray = (),
) -> list[Report]:
    """Replay in virtual time at a given pace, for every choice of (expert memory, eviction rule).

    Args:
        first_held: experts (flat ids) to hold from the start: as many of the first ones as fit; only for one device.
    """
    caches = [TimedCache(trace, policy, memory, rule, pace, first_held) for memory, rule in choices]
    return _run(trace, name, policy, caches, pace, progress)


def replay_setup(
    trace: RoutingTrace,
    history: Any = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    seed: int = 0,
    stream_prompts_from: int | None = None,
) -> PolicySetup:
    """The `PolicySetup` for a trace's model."""
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
        stream_prompts_from=stream_prompts_from,
    )


def _require_sensible(devices: int | None, expert_bytes: int | None, link: str | None, host_memory: int | str | None) -> None:
    for name, value in (("devices", devices), ("expert_bytes", expert_bytes)):
        if value is not None and not (is_whole(value) and value >= 1):
            raise FinemoeError(f"{name} is {value!r}; in a replay it must be a whole number, at least 1")
    if link is not None or host_memory is not None:
        raise FinemoeError("link and host_memory belong to the live engine; a replay has an instant link, or that of hardware=")


def _require_effect(hardware: Any, model: Any, expert_bytes: int | None) -> None:
    if hardware is None and model is not None:
        raise FinemoeError("model selects the sizes for hardware=; give both")
    if hardware is not None and expert_bytes is not None:
        raise FinemoeError("expert_bytes is for an instant link; with hardware= the size comes from the model's configuration")


def _require_others(history: Any, trace: RoutingTrace) -> None:
    """Refuse served requests in the history (DESIGN 4); requests are identified by name, if they have one, and by routing."""
    if isinstance(history, RoutingTrace) and history.model == trace.model:
        known = {name: number for number, name in enumerate(history.request_ids)}
        for number, name in enumerate(trace.request_ids):
            if name in known and _begins_alike(history, known[name], trace, number):
                raise FinemoeError(
                    f"request {name!r} is served and in the history, which must have other requests; take "
                    "trace.split('history') and trace.split('served')"
                )


def _begins_alike(one: RoutingTrace, request: int, other: RoutingTrace, number: int) -> bool:
    rows, others = one.rows_of(request), other.rows_of(number)
    count = min(rows.stop - rows.start, others.stop - others.start, _COMPARED_ROWS)
    return np.array_equal(one.expert_ids[rows.start : rows.start + count], other.expert_ids[others.start : others.start + count])


def _arranged(trace: RoutingTrace, batch_size: int) -> Arrangement:
    return Arrangement.one_by_one(trace) if batch_size == 1 else Arrangement.side_by_side(trace, batch_size)


def _run(
    trace: RoutingTrace,
    name: str,
    policy: Policy,
    caches: Sequence[InstantCache | TimedCache],
    pace: Pace | None = None,
    progress: bool = False,
) -> list[Report]:
    recall = Recall()
    bar = tqdm(desc=name, total=trace.num_rows, unit="row", leave=None, disable=not progress)
    with bar, Future(trace, any(cache.needs_future for cache in caches)) as future:
        if future.is_known:
            for cache in caches:
                cache.foresee(future.first_uses)
        for block in iteration_blocks(trace, block_rows(trace)):
            begins, demanded = demanded_sets(trace, block)
            next_use = future.take(len(demanded)) if future.is_known else np.zeros(len(demanded), dtype=np.int64)
            is_streamed, hidden_size = streamed(policy, block), None if pace is None else pace.hidden_size
            predictions, read_bytes = ask(policy, block, begins, demanded, hidden_size, is_streamed)
            targets = targets_of(predictions, trace.num_layers)
            events = events_of(trace.num_layers, begins, demanded, next_use, predictions, is_streamed)
            durations = None
            if pace is not None and read_bytes is not None:
                durations = pace.durations(trace, block, begins, demanded, read_bytes)
            for cache in caches:
                cache.run(block, events, durations)
            recall.add(begins, demanded, targets, predictions.probabilities)
            bar.update(block.rows.stop - block.rows.start)
    return [cache.report(name, recall.value) for cache in caches]
