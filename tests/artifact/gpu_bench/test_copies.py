"""Copies beside inference end with whoever waits for them; host memory is shown to a device as PyTorch takes it."""

import threading
import time

import pytest
import torch

from finemoe.artifact.gpu_bench.alarm import Alarm, OutOfTime
from finemoe.artifact.gpu_bench.copies import _beside, _HostBytes
from finemoe.artifact.machines.schema import IDLE, LAUNCHING

CPU = torch.device("cpu")


@pytest.mark.parametrize("main_thread", [IDLE, LAUNCHING])
def test_work_beside_inference_is_done_and_its_failure_is_raised(main_thread):
    done: list[int] = []
    _beside(lambda is_over: done.append(1), CPU, main_thread)
    assert done == [1]
    with pytest.raises(ValueError, match="no such record"):
        _beside(lambda is_over: (_ for _ in ()).throw(ValueError("no such record")), CPU, main_thread)


@pytest.mark.parametrize("main_thread", [IDLE, LAUNCHING])
def test_work_beside_an_interrupted_measurement_is_over_before_its_memory_goes(main_thread):
    ended = threading.Event()

    def work(is_over: threading.Event) -> None:
        is_over.wait(60)
        time.sleep(0.05)
        ended.set()

    with pytest.raises(OutOfTime), Alarm().limit(0.2):
        _beside(work, CPU, main_thread)
    assert ended.is_set()


def test_host_memory_is_shown_as_writable_words():
    """PyTorch refuses what is marked "read only", whatever is done with it."""
    record = torch.arange(32, dtype=torch.uint8)
    shown = _HostBytes(record).__cuda_array_interface__
    assert shown == {"data": (record.data_ptr(), False), "shape": (8,), "typestr": "<i4", "version": 3}
