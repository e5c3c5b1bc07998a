"""Where the time of FineMoE's decode iteration goes (Fig. 17), and a timeline of one step for Perfetto."""

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.software import resident_step_s, warm_step_s
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Breakdown
from finemoe.traces import DECODE, RoutingTrace


def parts(settings: Settings, subjects: Subjects, folder: Path) -> Iterator[Part]:
    """Three parts per model; timelines are written to `folder`."""
    share = settings.baseline_memory
    for target in settings.targets():

        def broken_down(target: Target = target) -> list[Breakdown]:
            return measure(subjects.of(target, expert_memory=1.0), share)

        def traced(target: Target = target) -> list[Any]:
            return trace(subjects.of(target, share), share, folder / f"timeline-{target.name}.json")

        def profiled(target: Target = target) -> list[Any]:
            if subjects.device.type != "cuda":
                raise NotHere("kernels and copies on a device can only be traced where there is a CUDA device")
            return profile(subjects.of(target, share), share, folder / f"timeline-{target.name}-device.json.gz")

        ready = partial(subjects.seconds_to_build, target)
        yield Part("breakdown", target.name, 20.0, broken_down, ready)
        yield Part("timeline", target.name, 10.0, traced, ready)
        yield Part("device-timeline", target.name, 20.0, profiled, ready)


def measure(subject: Subject, expert_memory: float) -> list[Breakdown]:
    """The parts of a decode step, computed from differences of whole steps, because the host cannot see waits of the device."""
    subject.require_parts()
    rest_s = resident_step_s(subject, computes_experts=False)
    resident_s, engine_s = resident_step_s(subject), warm_step_s(subject, "finemoe")
    whole_s, spans = _served(subject, expert_memory)
    found = {
        "attention, router, head": rest_s,
        "experts": max(0.0, resident_s - rest_s),
        "collecting context, accounting": max(0.0, engine_s - resident_s),
        "waiting for weights": max(0.0, whole_s - max(engine_s, resident_s)),
        "search": spans.get("matcher", 0.0),
        "prefetching": spans.get("prefetch", 0.0),
    }
    return [Breakdown(subject.name, expert_memory, part, seconds) for part, seconds in found.items()]


def trace(subject: Subject, expert_memory: float, path: Path) -> list[Any]:
    """Write a timeline of one decode step with the host's tracks: compute, link and matcher."""
    with subject.engine("finemoe", expert_memory, _one_step(subject)) as (engine, routing):
        routing.serve(0)
        with engine.timeline(path):
            routing.serve(1)
    return []


def profile(subject: Subject, expert_memory: float, path: Path) -> list[Any]:
    """Write a timeline of the same step with the device's tracks: kernels and copies."""
    from torch.profiler import ProfilerActivity

    path.parent.mkdir(parents=True, exist_ok=True)
    with subject.engine("finemoe", expert_memory, _one_step(subject)) as (_, routing):
        routing.serve(0)
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            routing.serve(1)
    profiler.export_chrome_trace(str(path))
    return []


def _one_step(subject: Subject) -> RoutingTrace:
    """The first served request, followed by a single decode step of the next as a second request."""
    served = subject.served
    step = np.flatnonzero(served.phase[served.rows_of(1)] == DECODE)[:1] + served.offsets[1]
    rows = np.concatenate([np.arange(served.offsets[1]), step])
    return served.arranged(rows, np.array([0, served.offsets[1], len(rows)]))


def _served(subject: Subject, expert_memory: float) -> tuple[float, dict[str, float]]:
    """Seconds of a decode step, and the part of each track or kind of transfer, from the engine's timeline."""
    with tempfile.TemporaryDirectory() as folder, subject.engine("finemoe", expert_memory) as (engine, routing):
        routing.serve(1)
        path = Path(folder, "timeline.json")
        with engine.timeline(path):
            _, *decode_s = routing.serve(0)
        events = json.loads(path.read_text())["traceEvents"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    whole = [event for event in events if event["ph"] == "X"]
    prefill_ends = min(event["ts"] + event["dur"] for event in whole if event["name"].startswith("iteration"))
    spans: dict[str, float] = {}
    for event in (one for one in whole if one["ts"] >= prefill_ends):
        track = tracks[event["tid"]]
        kind = event["name"].split()[0] if track.startswith("link") else track
        spans[kind] = spans.get(kind, 0.0) + event["dur"] / 1e6 / len(decode_s)
    return float(np.mean(decode_s)), spans
