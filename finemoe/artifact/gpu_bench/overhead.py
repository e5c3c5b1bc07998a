"""Decoding with every expert on the device: Transformers' own implementations, and the engine."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from finemoe.artifact.gpu_bench.bench import Part
from finemoe.artifact.gpu_bench.settings import Settings, Target, is_fast_enough
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Overhead
from finemoe.runtime.replayed import ReplayedRouting

OWN = ("eager", "grouped_mm", "batched_mm")  # Transformers decodes with the last one on a GPU
OURS = ("on-demand", "finemoe")


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model."""
    for target in settings.targets():

        def run(target: Target = target) -> list[Overhead]:
            return measure(subjects.of(target, expert_memory=1.0), settings.num_rounds)

        # Whether the bits are eager's is valid only for the measured version of the code.
        yield Part("overhead", target.name, 40.0, run, partial(subjects.seconds_to_build, target), is_of_code=True)


def measure(subject: Subject, rounds: int) -> list[Overhead]:
    """Rounds of the first served request; Transformers' variants run before and after the engine's, to balance drift."""
    first, expected = _own(subject, rounds, 0)
    ours = [row for policy in filter(is_fast_enough, OURS) for row in _ours(subject, policy, rounds, expected)]
    again, _ = _own(subject, rounds, rounds)
    return [*first, *ours, *again]


def _own(subject: Subject, rounds: int, first_round: int) -> tuple[list[Overhead], torch.Tensor]:
    rows, eager = [], torch.empty(0)
    with subject.plain() as routing:
        for variant in OWN:
            subject.model.set_experts_implementation(variant)
            found = _last_logits(subject, routing)
            eager = found if variant == "eager" else eager
            is_equal = torch.equal(found, eager)
            rows += [
                Overhead(subject.name, variant, first_round + number, _decode_s(routing), is_equal) for number in range(rounds)
            ]
    return rows, eager


def _ours(subject: Subject, policy: str, rounds: int, expected: torch.Tensor) -> list[Overhead]:
    with subject.engine(policy, 1.0) as (engine, routing):
        engine.preload()
        is_equal = torch.equal(_last_logits(subject, routing), expected)
        return [Overhead(subject.name, policy, number, _decode_s(routing), is_equal) for number in range(rounds)]


def _last_logits(subject: Subject, routing: ReplayedRouting) -> torch.Tensor:
    """Logits of the last iteration, on the host; also a warm-up."""
    found: list[torch.Tensor] = []
    handle = subject.model.register_forward_hook(lambda module, args, output: found.append(output.logits[:, -1]))
    routing.serve(0)
    handle.remove()
    return found[-1].cpu()


def _decode_s(routing: ReplayedRouting) -> float:
    return float(np.mean(routing.serve(0)[1:]))
