"""The ordering contract of the CUDA path, checked on any machine with a driver that only takes notes.

No compute reads a slot before the copies into it are over, and no copy overwrites a slot before the compute that read it is over.
"""

import pytest
import torch

import finemoe
from finemoe.runtime import attachment
from finemoe.runtime.compute_stream import ComputeStream
from finemoe.runtime.pool import SlotPool
from tests.runtime.fake_driver import COMPUTE, LINK, FakeDriver
from tests.runtime.models import FAMILIES, ODD_FAMILY, build, padded_batch


class DeafDriver(FakeDriver):
    """Its link's stream waits for nobody, so that slots are overwritten whoever still reads them."""

    def wait_event(self, stream: int, event: int, flags: int) -> None:
        if stream != LINK:
            super().wait_event(stream, event, flags)


def run(monkeypatch, family: str, policy: str, share: float, kind: type[FakeDriver] = FakeDriver) -> tuple[list[tuple], int, int]:
    model, batch, driver = build(family), padded_batch(), kind()
    with torch.no_grad():
        expected = model.generate(**batch, max_new_tokens=6, min_new_tokens=6)
    monkeypatch.setattr(attachment, "make_link", lambda device, description: driver.link())
    original = SlotPool.weights

    def weights(self, layer, slot, expert):
        driver.log.append(("read", slot))
        return original(self, layer, slot, expert)

    monkeypatch.setattr(SlotPool, "weights", weights)
    with finemoe.offload(model, share, policy) as engine, torch.no_grad():
        assert torch.equal(model.generate(**batch, max_new_tokens=6, min_new_tokens=6), expected)
        first = engine.memories.memories[0].pool.bytes_of(0, 0)
        return list(driver.log), first.data_ptr(), engine.records.record_bytes


def check(lines: list[tuple], begin: int, slot_bytes: int) -> int:
    """Walk through the driver's log, in which streams are in order by themselves; returns how many reads were checked.

    Raises:
        AssertionError: the contract is broken.
    """
    recorded_at: dict[tuple[int, int], int] = {}  # by (event, stream)
    seen = {(LINK, COMPUTE): -1, (COMPUTE, LINK): -1}  # how far a stream knows another to have come
    read_at: dict[int, int] = {}
    copied_at: dict[int, int] = {}
    num_reads = 0
    for place, line in enumerate(lines):
        match line:
            case ("record", event, stream):
                recorded_at[event, stream] = place
            case ("host waits", event):
                seen[COMPUTE, LINK] = max(seen[COMPUTE, LINK], recorded_at[event, LINK])
            case ("stream waits", stream, event):
                other = COMPUTE if stream == LINK else LINK
                seen[stream, other] = max(seen[stream, other], recorded_at.get((event, other), -1))
            case ("copy", sink, _, _):
                slot = (sink - begin) // slot_bytes
                assert seen[LINK, COMPUTE] > read_at.get(slot, -2), f"slot {slot} is overwritten while it is read"
                copied_at[slot] = place
            case ("read", slot):
                assert seen[COMPUTE, LINK] > copied_at.get(slot, -2), f"slot {slot} is read before its copy is over"
                read_at[slot] = place
                num_reads += 1
    return num_reads


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("policy", ["finemoe", "on-demand"])
@pytest.mark.parametrize("family", FAMILIES)
def test_contract_holds(monkeypatch, family, policy, share):
    assert check(*run(monkeypatch, family, policy, share)) > 50


def test_the_check_notices_a_link_without_fences(monkeypatch):
    noted = run(monkeypatch, "mixtral", "on-demand", 0.2, DeafDriver)
    with pytest.raises(AssertionError, match="while it is read"):
        check(*noted)


def test_the_check_notices_a_missing_wait(monkeypatch):
    lines, begin, slot_bytes = run(monkeypatch, "mixtral", "on-demand", 0.2)
    without_waits = [line for line in lines if line[:2] != ("stream waits", COMPUTE)]
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
