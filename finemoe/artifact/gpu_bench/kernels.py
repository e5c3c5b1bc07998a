"""Times of a model's parts with every expert on the device: the basis of the simulator's cost model."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from finemoe.artifact.gpu_bench.bench import Part
from finemoe.artifact.gpu_bench.clock import host_times_s, kernel_time_s
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Kernels
from finemoe.artifact.pipeline.timing import no_arithmetic

SHAPES = ((1, 64), (1, 512), (64, 0), (512, 0))  # tokens computed at once, context tokens before them
EXPERT_TOKENS = (1, 4, 16, 64, 256)


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model."""
    for target in settings.targets():

        def run(target: Target = target) -> list[Kernels]:
            return measure(subjects.of(target, expert_memory=1.0), settings.num_rounds)

        yield Part("kernels", target.name, 20.0, run, partial(subjects.seconds_to_build, target))


def measure(subject: Subject, rounds: int) -> list[Kernels]:
    """Time whole iterations, the layers without routed experts, and one expert, at several numbers of tokens."""
    subject.require_parts()
    with subject.engine("on-demand", 1.0) as (engine, routing):
        routing.detach()  # these shapes belong to no recorded request
        engine.preload()
        whole = [_iteration(subject, "iteration", shape, rounds) for shape in SHAPES]
        with no_arithmetic(engine):
            rest = [_iteration(subject, "layer", shape, rounds) for shape in SHAPES]
        return [*whole, *rest, *(_expert(subject, engine, count, rounds) for count in EXPERT_TOKENS)]


def _iteration(subject: Subject, part: str, shape: tuple[int, int], rounds: int) -> Kernels:
    num_tokens, context = shape
    call = iteration_of(subject, num_tokens, context)
    share = len(subject.layers) if part == "layer" else 1
    seconds = float(np.median(host_times_s(call, subject.device, 2 * rounds))) / share
    return Kernels(subject.name, part, num_tokens, context, seconds, kernel_time_s(call, subject.device, rounds) / share)


def iteration_of(subject: Subject, num_tokens: int, context: int) -> Callable[[], torch.Tensor]:
    """A call that runs one iteration over `num_tokens` tokens after a context, restored each time; returns the logits."""
    device, model = subject.device, subject.model
    tokens = torch.arange(context + num_tokens, device=device)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        cache = model(input_ids=tokens[:, :context], use_cache=True).past_key_values if context else None

    @torch.inference_mode()
    def call() -> torch.Tensor:
        output = model(input_ids=tokens[:, context:], past_key_values=cache, use_cache=True)
        if cache is not None:
            output.past_key_values.crop(-num_tokens)
        logits: torch.Tensor = output.logits
        return logits

    return call


def _expert(subject: Subject, engine: Any, num_tokens: int, rounds: int) -> Kernels:
    """One expert's share of a layer in which K experts compute `num_tokens` tokens each: with minus without arithmetic."""
    call = _layers(subject, engine, num_tokens)
    with_s, with_kernels_s = _both(call, subject, rounds)
    with no_arithmetic(engine):
        without_s, without_kernels_s = _both(call, subject, rounds)
    count = len(subject.layers) * engine.setup.top_k
    seconds, kernel_seconds = (with_s - without_s) / count, (with_kernels_s - without_kernels_s) / count
    return Kernels(subject.name, "expert", num_tokens, 0, max(seconds, 0.0), max(kernel_seconds, 0.0))


def _both(call: Callable[[], object], subject: Subject, rounds: int) -> tuple[float, float]:
    host_s = float(np.median(host_times_s(call, subject.device, 2 * rounds)))
    return host_s, kernel_time_s(call, subject.device, rounds)


def _layers(subject: Subject, engine: Any, num_tokens: int) -> Callable[[], object]:
    """A call of every layer's experts on the same tokens, all of which select experts 0 to K-1."""
    top_k, width = engine.setup.top_k, subject.model.config.get_text_config().hidden_size
    hidden = torch.randn(num_tokens, width, device=subject.device, dtype=subject.model.dtype)
    selected = torch.arange(top_k, device=subject.device).expand(num_tokens, top_k).contiguous()
    weights = torch.full((num_tokens, top_k), 1.0 / top_k, device=subject.device, dtype=hidden.dtype)

    @torch.inference_mode()
    def call() -> None:
        for layer in subject.layers:
            layer.experts(hidden, selected, weights)

    return call
