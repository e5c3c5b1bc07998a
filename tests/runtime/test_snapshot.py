"""Snapshots on CUDA, with streams and events that work as late as they may: values stay right, and buffers are used again."""

import threading
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finemoe
from finemoe.runtime import attachment
from finemoe.runtime import snapshot as snapshot_module
from finemoe.runtime.snapshot import HostBuffers, Snapshot
from tests.runtime.models import build, padded_batch

CUDA = torch.device("cuda", 0)
BUFFER_BYTES = 64 << 10


class LateCuda:
    """Streams that do what is queued only when somebody waits for an event behind it, and notes of what was made."""

    def __init__(self, monkeypatch) -> None:
        self.streams: list[deque] = [deque(), deque()]
        self.current = 0
        self.allocated: list[int] = []
        self.num_events = 0
        self.lock = threading.RLock()
        cuda, empty = self, torch.empty

        class Event:
            def __init__(self):
                self.place = None

            def record(self, stream):
                if self.place is None:
                    cuda.num_events += 1  # made by its first use
                self.place = stream
                self.is_over = over = threading.Event()
                with cuda.lock:
                    stream.append(over.set)

            def synchronize(self):
                with cuda.lock:
                    while not self.is_over.is_set():
                        self.place.popleft()()

        def allocate(*args, pin_memory=False, **options):
            if pin_memory:
                self.allocated.append(args[0])
            return empty(*args, **options)

        monkeypatch.setattr(torch, "empty", allocate)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.streams[self.current])
        monkeypatch.setattr(snapshot_module, "_is_on_cuda", lambda values: True)
        monkeypatch.setattr(snapshot_module.HostBuffer, "copy", self._copy_late(snapshot_module.HostBuffer.copy))

    def _copy_late(self, copy):
        """The buffer's own `copy`, whose writing waits in the current stream."""

        def late(buffer, values):
            queue = self.streams[self.current]

            class Late(torch.Tensor):
                @classmethod
                def __torch_function__(cls, function, types, args=(), options=None):
                    if function is not torch.Tensor.copy_:
                        return super().__torch_function__(function, types, args, options or {})
                    assert options == {"non_blocking": True}, "a blocking copy would stop the host"
                    host, then = args[0], args[1].as_subclass(torch.Tensor).clone()
                    with self.lock:
                        queue.append(lambda: host.copy_(then))
                    return host

            return copy(buffer, values.as_subclass(Late))

        return late


@pytest.fixture
def cuda(monkeypatch) -> LateCuda:
    return LateCuda(monkeypatch)


def read_and_compare(snapshot: Snapshot, values: torch.Tensor) -> np.ndarray:
    found = snapshot.rows(None)
    assert found.dtype == np.float32
    assert np.array_equal(found, values.float().numpy().reshape(-1, values.shape[-1]))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_the_moment(cuda, dtype):
    values = torch.randn(2, 3, 5).to(dtype)
    expected = values.clone()
    snapshot = Snapshot(values, HostBuffers(CUDA, 2))
    values.zero_()
    read_and_compare(snapshot, expected)
    assert np.array_equal(snapshot.rows(np.array([4, 1])), expected.float().numpy().reshape(6, 5)[[4, 1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_read_is_not_overwritten_by_later_snapshots(cuda, dtype):
    buffers = HostBuffers(CUDA, 1)
    kept = []
    for number in range(10):
        values = torch.full((2, 4), float(number), dtype=dtype)
        snapshot = Snapshot(values, buffers)
        kept.append((snapshot, read_and_compare(snapshot, values), number))
    assert cuda.allocated == [BUFFER_BYTES]
    for snapshot, found, number in kept:
        assert (found == number).all()
        assert (snapshot.rows(None) == number).all()  # and may be read again


def test_buffers_and_events_that_are_there_from_the_start_are_used_again(cuda):
    buffers = HostBuffers(CUDA, 5)
    assert (cuda.allocated, cuda.num_events) == ([BUFFER_BYTES] * 5, 5)
    for _ in range(20):  # iterations
        values = [torch.randn(3, 8) for _ in range(5)]
        for snapshot, one in [(Snapshot(one, buffers), one) for one in values]:
            read_and_compare(snapshot, one)
    assert (len(cuda.allocated), cuda.num_events) == (5, 5)


def test_more_buffers_are_made_while_all_are_taken_and_then_used_again(cuda):
    buffers = HostBuffers(CUDA, 2)
    for _ in range(3):
        values = [torch.randn(3, 8) for _ in range(6)]
        for snapshot, one in reversed([(Snapshot(one, buffers), one) for one in values]):
            read_and_compare(snapshot, one)
    assert cuda.allocated == [BUFFER_BYTES] * 6


def test_larger_values_get_memory_of_their_own(cuda):
    buffers = HostBuffers(CUDA, 1)
    values = torch.randn(BUFFER_BYTES // 4 + 1, 1)
    for _ in range(2):
        read_and_compare(Snapshot(values, buffers), values)
    assert cuda.allocated == [BUFFER_BYTES, *[BUFFER_BYTES + 4] * 2]
    read_and_compare(Snapshot(values[1:], buffers), values[1:])
    assert len(cuda.allocated) == 3


def test_a_snapshot_that_is_dropped_takes_its_buffer_with_it(cuda):
    """Its copy may be late: it must not land in what another snapshot holds."""
    buffers = HostBuffers(CUDA, 1)
    Snapshot(torch.ones(2, 4), buffers)
    cuda.current = 1
    values = torch.zeros(2, 4)
    snapshot = Snapshot(values, buffers)
    assert cuda.allocated == [BUFFER_BYTES] * 2
    found = read_and_compare(snapshot, values)
    while cuda.streams[0]:
        cuda.streams[0].popleft()()
    assert (found == 0).all()
    assert (snapshot.rows(None) == 0).all()


def test_without_buffers_each_snapshot_has_memory_of_its_own(cuda):
    values = torch.randn(3, 4)
    first, second = Snapshot(values), Snapshot(values + 1)
    read_and_compare(second, values + 1)
    read_and_compare(first, values)
    assert cuda.allocated == [48, 48]


@given(st.lists(st.tuples(st.sampled_from(["take", "read", "drop"]), st.integers(0, 30), st.integers(0, 1)), max_size=60))
def test_values_stay_right_in_whatever_order_and_on_whatever_streams(steps):
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuda = LateCuda(monkeypatch)
        buffers = HostBuffers(CUDA, 2)
        outstanding: list[tuple[Snapshot, torch.Tensor]] = []
        read: list[tuple[np.ndarray, torch.Tensor]] = []
        for number, (step, choice, stream) in enumerate(steps):
            if step == "take":
                cuda.current = stream
                values = torch.full((1 + choice, 3), float(number), dtype=[torch.float32, torch.bfloat16][choice % 2])
                outstanding.append((Snapshot(values, buffers), values))
            elif outstanding:
                snapshot, values = outstanding.pop(choice % len(outstanding))
                if step == "read":
                    read.append((read_and_compare(snapshot, values), values))
        for snapshot, values in outstanding:
            read.append((read_and_compare(snapshot, values), values))
        assert all(np.array_equal(found, values.float().numpy()) for found, values in read)


def test_threads_share_buffers(cuda):
    buffers, wrong = HostBuffers(CUDA, 3), []

    def work(number: int) -> None:
        for turn in range(200):
            values = torch.full((2, 4), float(1000 * number + turn))
            found = Snapshot(values, buffers).rows(None)
            if not (found == 1000 * number + turn).all():
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(cuda.allocated) <= 4


@pytest.mark.parametrize("policy", ["finemoe", "promoe", "mixtral-offloading"])
def test_an_engine_has_buffers_for_its_first_layers(cuda, monkeypatch, policy):
    monkeypatch.setattr(attachment, "host_buffers", lambda device, count: HostBuffers(CUDA, count))
    monkeypatch.setattr(snapshot_module, "_is_on_cuda", lambda values: False)
    model, batch = build("qwen2_moe"), padded_batch()
    with torch.no_grad():
        logits = model(**batch).logits
        tokens = model.generate(**batch, max_new_tokens=6, min_new_tokens=6)
        with finemoe.offload(model, 0.3, policy) as engine:
            monkeypatch.setattr(snapshot_module, "_is_on_cuda", lambda values: True)
            made = len(cuda.allocated), cuda.num_events
            assert made[0] == made[1] > 4
            assert torch.equal(model(**batch).logits, logits)
            engine.report()  # everything has been read
            assert (len(cuda.allocated), cuda.num_events) == made
            for token in range(3):
                model(input_ids=torch.tensor([[token + 3]]))
                engine.report()
            assert (len(cuda.allocated), cuda.num_events) == made
            assert torch.equal(model.generate(**batch, max_new_tokens=6, min_new_tokens=6), tokens)
            engine.report()  # the matcher gives the last ones back when it has read them
            assert engine.parts.buffers.num_free == len(cuda.allocated)
        assert engine.parts.buffers.num_free == 0


def test_an_engine_on_a_cpu_has_none(monkeypatch):
    monkeypatch.setattr(snapshot_module, "HostBuffer", lambda *_: pytest.fail("nothing is to be page-locked"))
    with finemoe.offload(build("mixtral"), 0.3) as engine:
        assert engine.parts.buffers is None
