"""The same model, request and device memory under Accelerate's CPU offload."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Baselines
from finemoe.traces import RoutingTrace

SYSTEM = "accelerate"


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model."""
    for target in settings.targets():

        def run(target: Target = target) -> list[Baselines]:
            if find_spec("accelerate") is None:
                raise NotHere("accelerate is not installed")
            # Twice in host memory: page-locked, and as the parameters that Accelerate takes over.
            subject = subjects.of(target, settings.baseline_memory, host_copies=2)
            return measure(subject, settings.baseline_memory, settings.baseline_tokens)

        yield Part("baselines", f"{SYSTEM} {target.name}", 40.0, run, partial(subjects.seconds_to_build, target))


def measure(subject: Subject, expert_memory: float, num_tokens: int) -> list[Baselines]:
    """One served request, cut to `num_tokens` decode steps.

    Accelerate moves whole modules. It gets the best possible placement: everything except experts stays on the device, and so do
    the experts of as many layers as the same memory holds. The experts of the other layers are moved in and out.
    """
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    device, num_kept = subject.device, int(expert_memory * len(subject.layers))
    away = subject.layers[num_kept:]
    with subject.plain(_cut(subject.served, num_tokens), lambda layer: layer.index < num_kept) as routing:
        for layer in away:
            cpu_offload(layer.experts, execution_device=device)
        try:
            routing.serve(0)  # warm-up
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            prefill_s, *decode_s = routing.serve(0)
            peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        finally:
            for layer in away:
                remove_hook_from_submodules(layer.experts)
    tpot_s = float(np.mean(decode_s))
    return [Baselines(subject.name, SYSTEM, expert_memory, 0, len(decode_s), prefill_s, tpot_s, peak_bytes)]


def _cut(trace: RoutingTrace, num_tokens: int) -> RoutingTrace:
    """The first request, cut to `num_tokens` decode steps."""
    first = trace.select([0])
    kept = np.flatnonzero(first.step <= num_tokens)
    return first.arranged(kept, np.array([0, len(kept)]))
