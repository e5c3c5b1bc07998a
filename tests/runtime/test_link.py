"""Links: paced copies take the link's time one after the other; the CUDA link orders its stream correctly (a fake driver)."""

import ctypes
import time
from typing import Any

import pytest
import torch

from finemoe.errors import EngineError, FinemoeError
from finemoe.runtime import copying
from finemoe.runtime.link import Link, MemoryLink, PacedLink, make_link, move, outlast
from tests.runtime.fake_driver import COMPUTE, CONTEXT, LINK, FakeDriver


def record_and_slot(num_bytes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(num_bytes, dtype=torch.int64).to(torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)


def test_a_plain_copy_is_complete_when_it_returns():
    record, slot = record_and_slot(1000)
    link = MemoryLink()
    assert link.wait(move(link, record, slot), 0) == 1
    assert torch.equal(record, slot)


def test_paced_copies_queue_up_behind_each_other():
    """By formula, on a clock that is told: no test waits for it."""
    state = copying.pace(1e6)
    ends = [copying.take_turn(state.ctypes.data, 1_000, 20_000) for _ in range(3)]
    assert ends == [1_000 + 20_000_000 * number for number in (1, 2, 3)]


def test_an_idle_paced_link_does_not_save_up_time():
    state = copying.pace(1e6)
    copying.take_turn(state.ctypes.data, 0, 10_000)
    assert copying.take_turn(state.ctypes.data, 500_000_000, 10_000) == 510_000_000


def test_a_paced_copy_is_not_over_before_its_time_and_then_it_is():
    link = PacedLink(1e6)
    record, slot = record_and_slot(3_000)
    begin_s = time.perf_counter()
    mark = move(link, record, slot)
    assert link.wait(mark, 0) == 0 or time.perf_counter() - begin_s >= 0.003, "looking does not wait"
    outlast(link, mark)
    assert time.perf_counter() - begin_s >= 0.003
    assert mark / 1e9 == link.end_s(mark) <= time.perf_counter()
    assert torch.equal(record, slot)


class Broken(Link):
    """Fails in Python, inside a call of compiled code."""

    def copy(self, sink, source, size, fence):
        raise OSError("cable cut")

    def wait(self, mark, most_ns):
        return 1


def test_what_a_link_in_python_raises_inside_compiled_code_is_kept():
    link = Broken()
    copy, _, state = link.addresses
    assert ctypes.CFUNCTYPE(*[ctypes.c_int64] * 6)(copy)(state, 0, 0, 1, 0) == -1
    assert isinstance(link.failure(), OSError)


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


def in_its_context(*calls: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """A default stream is that of the context which the thread is in; what else the thread does goes on in its own."""
    return [("enter", CONTEXT), *calls, ("leave",)]


def test_a_cuda_copy_waits_for_the_slots_last_reader_and_readers_wait_for_the_copy():
    driver = FakeDriver()
    link = driver.link()
    record, slot = record_and_slot(64)
    fence = link.fence()
    mark = move(link, record, slot, fence)
    link.order(mark)
    assert driver.log == [
        *in_its_context(("record", fence, COMPUTE)),
        *in_its_context(("stream waits", LINK, fence), ("copy", slot.data_ptr(), 64, LINK), ("record", mark, LINK)),
        *in_its_context(("stream waits", COMPUTE, mark)),
    ]
    outlast(link, mark)
    assert driver.log[-3:] == in_its_context(("host waits", mark))
    assert torch.equal(record, slot)


def test_a_cuda_link_has_finished_when_its_device_has():
    """Its own copies, and whatever stream still computes from a slot."""
    driver = FakeDriver()
    link = driver.link()
    move(link, *record_and_slot(4))
    link.finish()
    assert driver.log[-3:] == in_its_context(("host waits for all",))


@pytest.mark.parametrize("function", ["copy", "record", "wait_event", "synchronize", "push_context", "pop_context"])
def test_what_the_driver_refuses_is_raised_with_its_number_and_text(function):
    driver = FakeDriver(fails={function: 700})
    link = driver.link()
    with pytest.raises(EngineError, match="CUDA error 700: an illegal address"):
        outlast(link, move(link, *record_and_slot(8), fence=1))


def test_events_come_round_and_are_given_back():
    driver = FakeDriver()
    link = driver.link()
    record, slot = record_and_slot(4)
    marks = [move(link, record, slot) for _ in range(5000)]
    fences = [link.fence() for _ in range(300)]
    assert marks[0] == marks[4096] != marks[1]
    assert fences[0] == fences[256]
    assert not set(marks) & set(fences)
    link.close()
    assert sorted(driver.destroyed) == sorted({*marks, *fences})
