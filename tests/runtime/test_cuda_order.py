"""The ordering contract of the CUDA path, checked on any machine with streams and events that only take notes.

No compute reads a slot before the copies into it are over, and no copy overwrites a slot before the compute that read it is over.
"""

import threading
from contextlib import contextmanager

import pytest
import torch

import finemoe
from finemoe.runtime import attachment
from finemoe.runtime.compute_stream import ComputeStream
from finemoe.runtime.link import CudaLink
from finemoe.runtime.pool import SlotPool
from tests.runtime.models import FAMILIES, ODD_FAMILY, build, padded_batch

CPU = torch.device("cpu")


class Notes:
    """What was issued, in order, on the compute stream, the link's stream and the host."""

    def __init__(self, monkeypatch) -> None:
        self.lines: list[tuple] = []
        self._current = threading.local()
        notes = self.lines

        class Event:
            def record(self, stream):
                notes.append(("record", stream.name, self))

            def synchronize(self):
                notes.append(("host waits", self))

        class Stream:
            def __init__(self, device=None, name="link"):
                self.name = name

            def wait_event(self, event):
                notes.append(("stream waits", self.name, event))

            def synchronize(self):
                notes.append(("host waits for stream", self.name))

        @contextmanager
        def use(stream):
            yield

        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: notes.append(("host waits for device",)))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="compute"))


class NotedLink(CudaLink):
    """The CUDA link itself; what it copies where is noted."""

    notes: list[tuple]

    def copy(self, record, slot, fence):
        with self._lock_of_notes:
            completion = super().copy(record, slot, fence)
            self.notes.append(("copied", slot.data_ptr(), completion.event, fence))
        return completion

    _lock_of_notes = threading.Lock()


class ForgetfulLink(NotedLink):
    """Overwrites slots without looking at who still reads them."""

    def copy(self, record, slot, fence):
        return super().copy(record, slot, None)


def run(monkeypatch, family: str, policy: str, share: float, link: type[NotedLink] = NotedLink) -> tuple[list[tuple], int, int]:
    model, batch = build(family), padded_batch()
    with torch.no_grad():
        expected = model.generate(**batch, max_new_tokens=6, min_new_tokens=6)
    notes = Notes(monkeypatch)
    monkeypatch.setattr(link, "notes", notes.lines, raising=False)
    monkeypatch.setattr(attachment, "make_link", lambda device, description: link(device))
    original = SlotPool.weights

    def weights(self, layer, slot, expert):
        notes.lines.append(("read", slot))
        return original(self, layer, slot, expert)

    monkeypatch.setattr(SlotPool, "weights", weights)
    with finemoe.offload(model, share, policy) as engine, torch.no_grad():
        assert torch.equal(model.generate(**batch, max_new_tokens=6, min_new_tokens=6), expected)
        first = engine.memories.memories[0].pool.bytes_of(0, 0)
        return list(notes.lines), first.data_ptr(), engine.records.record_bytes


def check(lines: list[tuple], begin: int, slot_bytes: int) -> int:
    """Walk through the notes; returns how many reads were checked.

    Raises:
        AssertionError: the contract is broken.
    """
    over, recorded_at, read_at = set(), {}, {}
    copies: dict[int, list] = {}
    num_reads = 0
    for place, line in enumerate(lines):
        match line:
            case ("record", "compute", event):
                recorded_at[event] = place
            case ("host waits", event) | ("stream waits", "compute", event):
                over.add(event)
            case ("copied", pointer, event, fence):
                slot = (pointer - begin) // slot_bytes
                if slot in read_at:
                    assert fence is not None, f"slot {slot} is overwritten without a fence"
                    assert recorded_at[fence] > read_at[slot], f"slot {slot} is overwritten while it is read"
                copies.setdefault(slot, []).append(event)
            case ("read", slot):
                assert all(event in over for event in copies.get(slot, [])), f"slot {slot} is read before its copy is over"
                read_at[slot] = place
                num_reads += 1
    return num_reads


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("family", FAMILIES)
def test_contract_holds(monkeypatch, family, policy, share):
    assert check(*run(monkeypatch, family, policy, share)) > 50


def test_the_check_notices_a_link_without_fences(monkeypatch):
    noted = run(monkeypatch, "mixtral", "on-demand", 0.2, ForgetfulLink)
    with pytest.raises(AssertionError, match="without a fence"):
        check(*noted)


def test_the_check_notices_a_missing_wait(monkeypatch):
    lines, begin, slot_bytes = run(monkeypatch, "mixtral", "on-demand", 0.2)
    without_waits = [line for line in lines if line[:2] != ("stream waits", "compute")]
    with pytest.raises(AssertionError, match="before its copy is over"):
        check(without_waits, begin, slot_bytes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("family", [*FAMILIES, ODD_FAMILY])
def test_bit_equal_on_a_cuda_device(family, policy):
    model = build(family, torch.bfloat16).to("cuda")
    batch = {name: value.to("cuda") for name, value in padded_batch().items()}
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    with torch.no_grad():
        logits, tokens = model(**batch).logits, model.generate(**batch, **options)
    for share in (0.05, 0.25, 1.0):
        with finemoe.offload(model, share, policy), torch.no_grad():
            assert torch.equal(model(**batch).logits, logits)
            assert torch.equal(model.generate(**batch, **options), tokens)


def test_a_stream_that_takes_over_waits_for_the_one_before(monkeypatch):
    """Layers of one forward may run on several streams; slots are fenced by the one that read them last."""
    waited: list[tuple[str, str]] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            waited.append((self.name, other.name))

    first, second, device = Stream("first"), Stream("second"), torch.device("cuda", 0)
    followed = ComputeStream()
    for stream in (first, first, second, second, first):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, stream=stream: stream)
        followed.follow(device)
    assert waited == [("second", "first"), ("first", "second")]
