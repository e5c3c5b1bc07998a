"""Links: paced copies take the link's time one after the other; the CUDA link orders its stream correctly (with fakes)."""

from contextlib import contextmanager

import pytest
import torch

from finemoe.errors import FinemoeError
from finemoe.runtime.link import CudaLink, MemoryLink, PacedLink, make_link


def record_and_slot(num_bytes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(num_bytes, dtype=torch.int64).to(torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)


def test_a_plain_copy_is_complete_when_it_returns():
    record, slot = record_and_slot(1000)
    MemoryLink().copy(record, slot, None)
    assert torch.equal(record, slot)


def test_paced_copies_queue_up_behind_each_other(clock):
    link = PacedLink(1e6)
    record, slot = record_and_slot(20_000)
    completions = [link.copy(record, slot, None) for _ in range(3)]
    assert clock.now_s == 0, "issuing a copy must not wait for it"
    for number, completion in enumerate(completions, start=1):
        completion.wait_for_reader()
        assert clock.now_s == pytest.approx(0.02 * number)
    assert torch.equal(record, slot)


def test_an_idle_paced_link_does_not_save_up_time(clock):
    link = PacedLink(1e6)
    record, slot = record_and_slot(10_000)
    clock.sleep(0.5)
    link.copy(record, slot, None).wait_for_host()
    assert clock.now_s == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("fast", "unknown link 'fast'"),
        ("paced:24GB", "not a rate"),
        ("paced:-1GB/s", "not a byte count"),
        ("paced:0GB/s", "positive"),
    ],
)
def test_bad_descriptions_are_named(description, message):
    with pytest.raises(FinemoeError, match=message):
        make_link(torch.device("cpu"), description)


def test_a_real_link_cannot_be_paced():
    with pytest.raises(FinemoeError, match="CPU-only"):
        make_link(torch.device("cuda", 0), "paced:1GB/s")


class FakeCuda:
    """Writes down what happens on which stream, in order."""

    def __init__(self, monkeypatch):
        self.log: list[tuple] = []
        self.current = "compute"
        log = self.log

        class Event:
            def record(self, stream):
                log.append(("record", stream.name, id(self)))

            def synchronize(self):
                log.append(("synchronize", id(self)))

        class Stream:
            def __init__(self, device=None, name="link"):
                self.name = name

            def wait_event(self, event):
                log.append(("wait", self.name, id(event)))

            def synchronize(self):
                log.append(("synchronize", self.name))

        @contextmanager
        def use(stream):
            self.current, before = stream.name, self.current
            yield
            self.current = before

        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(("synchronize", str(device))))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="compute"))


class FakeSlot:
    def __init__(self, cuda: FakeCuda):
        self.cuda = cuda

    def copy_(self, record, non_blocking=False):
        assert non_blocking, "a blocking copy would stop the host"
        self.cuda.log.append(("copy", self.cuda.current))


def test_a_cuda_copy_waits_for_the_slots_last_reader_and_readers_wait_for_the_copy(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    link = CudaLink(torch.device("cuda", 0))
    fence = link.fence()
    completion = link.copy(torch.zeros(4), FakeSlot(cuda), fence)
    completion.wait_for_reader()
    done = completion.event
    assert cuda.log == [
        ("record", "compute", id(fence)),
        ("wait", "link", id(fence)),
        ("copy", "link"),
        ("record", "link", id(done)),
        ("wait", "compute", id(done)),
    ]
    completion.wait_for_host()
    assert cuda.log[-1] == ("synchronize", id(done))


def test_a_cuda_link_has_finished_when_its_device_has(monkeypatch):
    """Its own copies, and whatever stream still computes from a slot."""
    cuda = FakeCuda(monkeypatch)
    link = CudaLink(torch.device("cuda", 0))
    link.copy(torch.zeros(4), FakeSlot(cuda), None)
    link.finish()
    assert cuda.log[-1] == ("synchronize", "cuda:0")
