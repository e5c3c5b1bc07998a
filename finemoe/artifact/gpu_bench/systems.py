"""Every policy at every memory size: TTFT, TPOT, hit rate and bytes of served requests."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from finemoe.artifact.gpu_bench.bench import Part
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Requests
from finemoe.runtime.engine import Engine
from finemoe.runtime.replayed import ReplayedRouting
from finemoe.traces import RoutingTrace

_WHOLE_LAYERS = ("deepspeed-inference",)
_COUNTS = ("accesses", "hits", "late", "misses", "prefetched_bytes", "demand_bytes", "wasted_bytes")


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model, memory size and policy."""
    for target in settings.targets():
        for share in settings.expert_memories:
            for policy in settings.policies:

                def run(target: Target = target, share: float = share, policy: str = policy) -> list[Requests]:
                    return measure(subjects.of(target, share), policy, share, settings)

                ready = partial(subjects.seconds_to_build, target)
                yield Part("systems", f"{target.name} {policy} {share:g}", 15.0, run, ready)


def requests_of(served: RoutingTrace, policy: str, settings: Settings) -> RoutingTrace:
    """The requests to serve, in order: one that warms up caches, kernels and allocator, then the timed ones.

    For policies that load whole layers, each request ends after a few decode steps, because these are all alike and take seconds.
    """
    chosen = served.select([settings.num_served, *range(settings.num_served)])
    if policy not in _WHOLE_LAYERS:
        return chosen
    kept = np.flatnonzero(chosen.step <= settings.baseline_tokens)
    return chosen.arranged(kept, np.searchsorted(kept, chosen.offsets))


def measure(subject: Subject, policy: str, expert_memory: float, settings: Settings) -> list[Requests]:
    """Serve the requests one after the other with one cache."""
    requests = requests_of(subject.served, policy, settings)
    with subject.engine(policy, expert_memory, requests) as (engine, routing):
        return serve(subject.name, engine, routing, requests, policy, expert_memory)


def serve(
    model: str, engine: Engine, routing: ReplayedRouting, requests: RoutingTrace, policy: str, expert_memory: float
) -> list[Requests]:
    """Serve all requests in order; the first is a warm-up and is not reported."""
    routing.serve(0)
    return [_serve(model, engine, routing, requests, policy, expert_memory, one) for one in range(1, requests.num_requests)]


def _serve(
    model: str,
    engine: Engine,
    routing: ReplayedRouting,
    requests: RoutingTrace,
    policy: str,
    expert_memory: float,
    request: int,
) -> Requests:
    engine.reset_counters()
    prefill_s, *decode_s = routing.serve(request)
    report = engine.report()
    counts = {name: getattr(report, name) for name in _COUNTS}
    rows = requests.rows_of(request)
    return Requests(
        model=model,
        policy=policy,
        expert_memory=expert_memory,
        expert_memory_bytes=report.expert_memory_bytes,
        request=request - 1,
        num_prompt_tokens=rows.stop - rows.start - len(decode_s),
        num_decode_steps=len(decode_s),
        ttft_s=prefill_s,
        tpot_s=float(np.mean(decode_s)),
        host_stall_s=report.stall_s,
        **counts,
    )
