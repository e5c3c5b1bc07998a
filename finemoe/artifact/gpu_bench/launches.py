"""The host's cost of a decode step's device work: kernels launched one by one, and a CUDA graph."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.clock import finish
from finemoe.artifact.gpu_bench.kernels import iteration_of
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Launches
from finemoe.runtime.layer_runner import Resident
from finemoe.runtime.lean import lean_forward
from finemoe.runtime.selection_reader import SelectionReader
from finemoe.runtime.snapshot import host_buffers

_IN_A_ROW = 50  # calls between two waits for the device, far fewer than a stream can queue
_WARM_UPS = 3  # before a capture
_CONTEXT = 64  # tokens
_SINGLY, _GRAPHS = "singly", "graphs"
Call = Callable[[], object]


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """Two parts per model: without and with CUDA graphs, which not every device supports."""
    for target in settings.targets():

        def launched(target: Target = target) -> list[Launches]:
            return measure(subjects.of(target, expert_memory=1.0), settings.num_rounds)

        def replayed(target: Target = target) -> list[Launches]:
            if subjects.device.type != "cuda":
                raise NotHere("only CUDA devices have graphs")
            return measure_graphs(subjects.of(target, expert_memory=1.0), settings.num_rounds)

        ready = partial(subjects.seconds_to_build, target)
        yield Part("launches", f"{target.name} {_SINGLY}", 10.0, launched, ready)
        yield Part("launches", f"{target.name} {_GRAPHS}", 20.0, replayed, ready)


def measure(subject: Subject, rounds: int) -> list[Launches]:
    """Time calls of one token's sizes."""
    values, width = _token(subject), _width(subject)
    weight = torch.zeros(width, width, device=subject.device, dtype=subject.model.dtype)
    calls: dict[str, Call] = {
        "python call": lambda: None,
        "element-wise kernel": lambda: values.add_(1.0),
        "square linear": lambda: torch.nn.functional.linear(values, weight),
        "selection read": _selection_read(subject),
    }
    found = [_launches(subject, what, call, rounds) for what, call in calls.items()]
    with _experts(subject) as call:
        found.append(_launches(subject, "experts of one token", call, rounds))
    with subject.plain() as routing, torch.inference_mode():
        routing.detach()
        subject.model.set_experts_implementation("batched_mm")
        return [*found, _launches(subject, "iteration, batched_mm", iteration_of(subject, 1, _CONTEXT), rounds, in_a_row=1)]


def measure_graphs(subject: Subject, rounds: int) -> list[Launches]:
    """The larger of these calls, captured once and replayed."""
    with _experts(subject) as call:
        found = [_graph(subject, "experts of one token", call, rounds)]
    with subject.plain() as routing, torch.inference_mode():
        routing.detach()
        subject.model.set_experts_implementation("batched_mm")
        return [*found, _graph(subject, "iteration, batched_mm", iteration_of(subject, 1, _CONTEXT), rounds, in_a_row=1)]


def _launches(subject: Subject, what: str, call: Call, rounds: int, in_a_row: int = _IN_A_ROW) -> Launches:
    times_s = _times_s(call, subject.device, rounds, in_a_row)
    return Launches(subject.name, what, False, *_settled(times_s), True)


def _graph(subject: Subject, what: str, call: Callable[[], torch.Tensor], rounds: int, in_a_row: int = _IN_A_ROW) -> Launches:
    expected = call().clone()
    stream = torch.cuda.Stream(subject.device)
    stream.wait_stream(torch.cuda.current_stream(subject.device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream(subject.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # ignores calls of other threads
        output = call()
    graph.replay()
    finish(subject.device)
    is_equal = torch.equal(output, expected)
    return Launches(subject.name, what, True, *_settled(_times_s(graph.replay, subject.device, rounds, in_a_row)), is_equal)


def _times_s(call: Call, device: torch.device, rounds: int, in_a_row: int) -> np.ndarray:
    """Host seconds per call, [rounds]; a single call counts until the device has finished it."""
    times_s = []
    for _ in range(4 * rounds + 1):
        finish(device)
        begin_s = time.perf_counter()
        for _ in range(in_a_row):
            call()
        if in_a_row == 1:
            finish(device)
        times_s.append((time.perf_counter() - begin_s) / in_a_row)
    return np.array(times_s[1:])


def _settled(times_s: np.ndarray) -> tuple[float, float, float]:
    return float(np.median(times_s)), float(times_s.min()), float(times_s.max())


def _selection_read(subject: Subject) -> Call:
    """A call that reads a router's selected experts as the engine does."""
    selected = torch.zeros(1, 4, dtype=torch.int64, device=subject.device)
    reader = SelectionReader(host_buffers(subject.device, 1))

    def call() -> None:
        reader.begin((selected,))
        reader.read(selected)

    return call


@contextmanager
def _experts(subject: Subject) -> Iterator[Callable[[], torch.Tensor]]:
    """A call of one layer's experts on one token, with all weights in slots."""
    with subject.engine("on-demand", 1.0) as (engine, routing):
        routing.detach()
        engine.preload()
        layer, top_k = subject.layers[0], engine.setup.top_k
        source, selected = Resident(engine.memories.resident_weights(layer.index)), np.arange(top_k)[None]
        index, hidden = torch.from_numpy(selected).to(subject.device), _token(subject)
        shares = torch.full((1, top_k), 1 / top_k, device=subject.device, dtype=subject.model.dtype)

        @torch.inference_mode()
        def call() -> torch.Tensor:
            return lean_forward(layer.experts, source, hidden, selected, index, shares)

        yield call


def _token(subject: Subject) -> torch.Tensor:
    generator = torch.Generator(subject.device).manual_seed(0)
    return torch.randn(1, _width(subject), device=subject.device, generator=generator).to(subject.model.dtype)


def _width(subject: Subject) -> int:
    return int(subject.model.config.get_text_config().hidden_size)
