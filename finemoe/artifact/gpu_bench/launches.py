"""What the host pays for what a decode step asks of the device: kernels launched one by one, and by a CUDA graph."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.clock import finish
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.machines.schema import Launches
from finemoe.runtime.lean import lean_forward
from finemoe.runtime.selection_reader import SelectionReader
from finemoe.runtime.snapshot import host_buffers

_IN_A_ROW = 50  # calls between two waits for the device, far fewer than a stream queues
_WARM_UPS = 3  # before a capture
_CONTEXT = 64  # tokens
_SINGLY, _GRAPHS = "singly", "graphs"
Call = Callable[[], object]


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """Two parts for each model: with and without graphs, which a device may not have."""
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
    """Calls of the sizes of one token."""
    values, weight = _token(subject), torch.zeros(_width(subject), _width(subject), device=subject.device, dtype=_dtype(subject))
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
        return [*found, _launches(subject, "iteration, batched_mm", _iteration(subject), rounds, in_a_row=1)]


def measure_graphs(subject: Subject, rounds: int) -> list[Launches]:
    """The larger of these calls, captured once and then replayed."""
    with _experts(subject) as call:
        found = [_graph(subject, "experts of one token", call, rounds)]
    with subject.plain() as routing, torch.inference_mode():
        routing.detach()
        subject.model.set_experts_implementation("batched_mm")
        return [*found, _graph(subject, "iteration, batched_mm", _iteration(subject), rounds, in_a_row=1)]


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
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads' calls are not of this capture
        output = call()
    graph.replay()
    finish(subject.device)
    is_equal = torch.equal(output, expected)
    return Launches(subject.name, what, True, *_settled(_times_s(graph.replay, subject.device, rounds, in_a_row)), is_equal)


def _times_s(call: Call, device: torch.device, rounds: int, in_a_row: int) -> np.ndarray:
    """Of the host, for one call, [rounds]; a call alone counts until the device has done it."""
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
    """As the engine reads which experts a router has selected."""
    selected = torch.zeros(1, 4, dtype=torch.int64, device=subject.device)
    reader = SelectionReader(host_buffers(subject.device, 1))

    def call() -> None:
        reader.begin((selected,))
        reader.read(selected)

    return call


class _experts:
    """One layer's experts on one token, with weights from slots where all of them are."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._engine = subject.engine("on-demand", 1.0)

    def __enter__(self) -> Callable[[], torch.Tensor]:
        engine, routing = self._engine.__enter__()
        routing.detach()
        engine.preload()
        subject, top_k = self._subject, engine.setup.top_k
        layer = subject.layers[0]
        weights_of = engine.memories.resident_weights(layer.index)
        selected = np.arange(top_k)[None]
        index = torch.from_numpy(selected).to(subject.device)
        hidden, shares = _token(subject), torch.full((1, top_k), 1 / top_k, device=subject.device, dtype=_dtype(subject))
        source = _Slots(weights_of)

        @torch.inference_mode()
        def call() -> torch.Tensor:
            return lean_forward(layer.experts, source, hidden, selected, index, shares)

        return call

    def __exit__(self, *error: Any) -> None:
        self._engine.__exit__(*error)


class _Slots:
    """Where every expert's weights are for good."""

    def __init__(self, weights_of: list[dict[str, torch.Tensor]]) -> None:
        self.weights = weights_of.__getitem__

    def as_they_come(self, experts: Any) -> Any:
        return experts


def _iteration(subject: Subject) -> Callable[[], torch.Tensor]:
    """The whole model on one token after a context, which is cut back each time."""
    model, device = subject.model, subject.device
    tokens = torch.arange(_CONTEXT + 1, device=device)[None] % model.config.get_text_config().vocab_size
    cache = model(input_ids=tokens[:, :_CONTEXT], use_cache=True).past_key_values
    token = tokens[:, _CONTEXT:].clone()

    def call() -> torch.Tensor:
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        output.past_key_values.crop(-1)
        logits: torch.Tensor = output.logits
        return logits

    return call


def _token(subject: Subject) -> torch.Tensor:
    generator = torch.Generator(subject.device).manual_seed(0)
    return torch.randn(1, _width(subject), device=subject.device, generator=generator).to(_dtype(subject))


def _width(subject: Subject) -> int:
    return int(subject.model.config.get_text_config().hidden_size)


def _dtype(subject: Subject) -> torch.dtype:
    return subject.model.dtype
