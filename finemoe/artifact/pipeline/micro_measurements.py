"""Micro-measurements that predictions of live runs are based on: each part of the engine's work is measured alone.

Every value is a median over repetitions. Variants that are compared are measured in alternation.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

import finemoe
from finemoe.artifact.pipeline.measured_pace import LinkTimes, Machine, SystemTimes
from finemoe.artifact.pipeline.timing import (
    demand_s,
    expert_time_s,
    generation,
    one_expert_bytes,
    paced_link,
    post,
    started_memory,
)
from finemoe.policies import make_policy
from finemoe.policies.base import Context, Policy
from finemoe.runtime.link import make_link
from finemoe.simulation.replay import replay_setup
from finemoe.traces import RoutingTrace

_QUEUED = 8  # number of prefetches that keep a link busy
_PATIENCE_S = 60.0
_ON_DEMAND = "on-demand"


def measure_machine(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    num_tokens: int,
    known: Mapping[str, Any],
    loads_s: Sequence[float],
    num_repetitions: int,
    searched: RoutingTrace,
    **options: Any,
) -> Machine:
    """Micro-measurements of a model.

    Args:
        prompts: prompts that are not among the predicted ones.
        num_tokens: tokens generated per prompt.
        known: the history of each policy.
        loads_s: time of one expert on each link, in seconds.
        searched: routing of other requests, used to time searches.
        options: the policies' remaining options.
    """
    calls = [generation(model, tokenizer, [prompt], num_tokens) for prompt in prompts]
    with finemoe.offload(model, 1.0, _ON_DEMAND) as engine:
        engine.preload()
        steps = _iterations_s(engine, calls, num_repetitions)
        cold_s = _cold_s(engine, calls, float(np.median(loads_s)), num_repetitions)
        expert_s, num_layers = expert_time_s(engine, 5 * num_repetitions), len(engine.layers)
    prefill_s, decode_s = np.median(steps, axis=0).tolist()
    systems = {}
    for policy, history in known.items():
        with finemoe.offload(model, 1.0, policy, history=history, **options) as engine, engine.probe.accounting():
            engine.preload()
            step_s = float(np.median(_iterations_s(engine, calls, num_repetitions)[:, 1]))
            is_synchronous = engine.policy.is_synchronous
        setup = replay_setup(searched, history, **options)
        alone_s = search_times_s(make_policy(policy, setup, is_replay=True), searched)
        systems[policy] = SystemTimes(max(0.0, step_s - decode_s) / num_layers, *alone_s, is_synchronous)
    links = measure_links(model, loads_s, num_repetitions)
    return Machine(one_expert_bytes(model), prefill_s, decode_s, expert_s, cold_s, systems, links)


def measure_links(model: Any, loads_s: Sequence[float], num_repetitions: int) -> dict[float, LinkTimes]:
    """Measure paced links with these load times; keyed by load time in seconds."""
    ahead_s: dict[bool, dict[float, float]] = {False: {}, True: {}}
    wake_s = {}
    for is_beside, found_s in ahead_s.items():
        with finemoe.offload(model, 0.5, _ON_DEMAND, asynchronous=is_beside) as engine:
            memory = started_memory(engine)
            for load_s in loads_s:
                memory.connect(make_link(memory.pool.device, paced_link(one_expert_bytes(model) / load_s)))
                found_s[load_s] = float(np.median([_prefetch_s(memory) for _ in range(num_repetitions)]))
                wake_s[load_s] = max(0.0, _wait_s(memory, len(engine.layers)) - load_s)
    return {load_s: LinkTimes(load_s, wake_s[load_s], ahead_s[True][load_s], ahead_s[False][load_s]) for load_s in loads_s}


def search_times_s(policy: Policy, trace: RoutingTrace, num_iterations: int = 20) -> tuple[float, float]:
    """Median time of a policy's own work at the start of an iteration and at a gate, in seconds, one decode row at a time."""
    if not policy.needs_context:
        return 0.0, 0.0
    starts_s, gates_s = [], []
    rows = np.flatnonzero(trace.phase == 1)[:num_iterations]
    for row in rows:
        maps, experts = trace.maps(slice(row, row + 1)), trace.expert_ids[row : row + 1].astype(np.int64)
        begin_s = time.perf_counter()
        policy.start_iteration(Context(trace.embeddings(slice(row, row + 1)), is_prefill=False, starts_request=False))
        starts_s.append(time.perf_counter() - begin_s)
        for layer in range(trace.num_layers):
            probs = np.ascontiguousarray(maps[:, layer])
            begin_s = time.perf_counter()
            policy.on_gate(layer, probs, experts[:, layer])
            gates_s.append(time.perf_counter() - begin_s)
        policy.end_iteration()
    return float(np.median(starts_s)), float(np.median(gates_s))


def _iterations_s(engine: Any, calls: Sequence[Callable[[list[Any]], object]], num_repetitions: int) -> np.ndarray:
    """[n, 2] (TTFT, TPOT) in seconds, after one warm-up of each call."""
    for call in calls:
        call([])
    found = []
    for _ in range(num_repetitions):
        for call in calls:
            engine.reset_counters()
            call([])
            report = engine.report()
            found.append((report.ttft_s, report.tpot_s))
    return np.array(found)


def _cold_s(engine: Any, calls: Sequence[Callable[[list[Any]], object]], length_s: float, num_repetitions: int) -> float:
    """What a pause of `length_s` in every layer costs per layer beyond its length; calls with and without pauses alternate."""
    found_s = []
    for _ in range(num_repetitions):
        (_, plain_s), *_ = _iterations_s(engine, calls[:1], 1)
        with _pauses(engine, length_s) as paused_s:
            (_, pausing_s), *_ = _iterations_s(engine, calls[:1], 1)
        found_s.append((pausing_s - plain_s) / len(engine.layers) - float(np.mean(paused_s)))
    return max(0.0, float(np.median(found_s)))


@contextmanager
def _pauses(engine: Any, length_s: float) -> Iterator[list[float]]:
    """Pause every layer for `length_s` before its experts are computed; the list collects the actual lengths."""
    compute = engine.probe.compute
    real_s: list[float] = []

    def pausing(*arguments: Any) -> Any:
        begin_s = time.perf_counter()
        time.sleep(length_s)
        real_s.append(time.perf_counter() - begin_s)
        return compute(*arguments)

    with engine.probe.computing_with(pausing):
        yield real_s


def _prefetch_s(memory: Any) -> float:
    """How long a prefetched expert occupies a link, chunk by chunk, while other prefetches wait."""
    _empty(memory)
    begin_s = time.perf_counter()
    for layer in range(_QUEUED):
        post(memory, layer=layer, experts=1)
    assert memory.wait_until_idle(_PATIENCE_S), "the prefetches never arrived"
    return (time.perf_counter() - begin_s) / _QUEUED


def _wait_s(memory: Any, num_layers: int) -> float:
    """How much longer a layer's missing expert takes than a cached one, over an idle link."""
    _empty(memory)
    missing_s = [demand_s(memory, layer, 0) for layer in range(num_layers)]
    here_s = [demand_s(memory, layer, 0) for layer in range(num_layers)]
    return float(np.median(missing_s) - np.median(here_s))


def _empty(memory: Any) -> None:
    memory.reset()
    memory.start_iteration(1)
