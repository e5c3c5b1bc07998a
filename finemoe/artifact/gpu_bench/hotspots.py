"""The functions in which inference's thread spends the decode steps, from Python's profiler."""

import cProfile
import pstats
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from finemoe.artifact.gpu_bench.bench import Part
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.gpu_bench.systems import requests_of
from finemoe.artifact.machines.schema import Hotspots

_MOST = 40  # number of functions


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model and policy, at the baselines' memory size."""
    for target in settings.targets():
        for policy in settings.policies:

            def run(target: Target = target, policy: str = policy) -> list[Hotspots]:
                return measure(subjects.of(target, settings.baseline_memory), policy, settings)

            yield Part("hotspots", f"{target.name} {policy}", 10.0, run, partial(subjects.seconds_to_build, target))


def measure(subject: Subject, policy: str, settings: Settings) -> list[Hotspots]:
    """The functions with the most own time in a request's iterations; the profiler inflates these times."""
    requests = requests_of(subject.served, policy, settings)
    profiler = cProfile.Profile()
    with subject.engine(policy, settings.baseline_memory, requests) as (_, routing):
        routing.serve(0)
        profiler.enable()
        steps = len(routing.serve(1))
        profiler.disable()
    found = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    rows = [
        Hotspots(subject.name, policy, _name(*where), calls / steps, own_s / steps, whole_s / steps)
        for where, (_, calls, own_s, whole_s, _) in found
    ]
    return sorted(rows, key=lambda row: -row.own_s_per_step)[:_MOST]


def _name(path: str, line: int, function: str) -> str:
    return function if path == "~" else f"{Path(path).parent.name}/{Path(path).name}:{line} {function}"
