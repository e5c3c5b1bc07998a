"""The time of a layer under each policy when there is nothing to load, measured on the history's requests."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import numpy as np

from finemoe.artifact.gpu_bench.bench import Part
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Software
from finemoe.artifact.pipeline.micro_measurements import search_times_s
from finemoe.artifact.pipeline.timing import no_arithmetic
from finemoe.policies import make_policy
from finemoe.runtime.replayed import ReplayedRouting
from finemoe.simulation.replay import replay_setup

RESIDENT = "resident"
_REQUESTS = 2


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model and policy, and one without a policy."""
    for target in settings.targets():
        for policy in (RESIDENT, *settings.policies):

            def run(target: Target = target, policy: str = policy) -> list[Software]:
                return [measure(subjects.of(target, expert_memory=1.0), policy, settings)]

            yield Part("software", f"{target.name} {policy}", 10.0, run, partial(subjects.seconds_to_build, target))


def measure(subject: Subject, policy: str, settings: Settings) -> Software:
    """Measure one policy, or the resident model."""
    if policy == RESIDENT:
        return Software(subject.name, policy, resident_step_s(subject) / len(subject.layers), 0.0, 0.0)
    subject.require_speed(policy)
    distance = min(settings.prefetch_distance, len(subject.layers))
    setup = replay_setup(subject.history, subject.history, distance, settings.store_capacity, settings.seed)
    searches_s = search_times_s(make_policy(policy, setup, is_replay=True), subject.history)
    return Software(subject.name, policy, warm_step_s(subject, policy) / len(subject.layers), *searches_s)


def resident_step_s(subject: Subject, computes_experts: bool = True) -> float:
    """Seconds of a decode step with every expert permanently on the device, with or without the experts' arithmetic."""
    with subject.engine("on-demand", 1.0, subject.history) as (engine, routing):
        engine.preload()
        with nullcontext() if computes_experts else no_arithmetic(engine):
            return _step_s(routing)


def warm_step_s(subject: Subject, policy: str) -> float:
    """Seconds of a decode step with every expert on the device, while everything else is done as if some were missing."""
    with subject.engine(policy, 1.0, subject.history) as (engine, routing), engine.probe.accounting():
        engine.preload()
        return _step_s(routing)


def _step_s(routing: ReplayedRouting) -> float:
    """Mean seconds of a decode step when the same requests are served for the second time."""
    runs = [[routing.serve(request) for request in range(_REQUESTS)] for _ in range(2)]
    return float(np.mean([step_s for durations in runs[-1] for step_s in durations[1:]]))
