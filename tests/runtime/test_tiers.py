"""Records in host memory and on disk: what goes in comes out, budgets hold, and damage is found."""

import gc
import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finemoe.errors import EngineError, FinemoeError
from finemoe.runtime import tiers
from finemoe.runtime.expert_layout import ExpertLayout, Field
from finemoe.runtime.tiers import ExpertStore

LAYOUT = ExpertLayout((Field("up", 0, 0, (3, 5), torch.float32), Field("down", 512, 0, (5,), torch.bfloat16)), 1024)
WIDE = ExpertLayout((Field("up", 0, 0, (3, 400), torch.float32),), 5120)


def filled(**options) -> tuple[ExpertStore, dict[tuple[int, int], dict[str, torch.Tensor]]]:
    """A store of two layers, 6 experts of one layout and 4 of another, and what was put in."""
    store = ExpertStore([LAYOUT, WIDE], [6, 4], **options)
    generator = torch.Generator().manual_seed(0)
    content = {}
    for layer, (layout, count) in enumerate(zip(store.layouts, store.counts, strict=True)):
        for expert in range(count):
            weights = {f.name: torch.randn(f.shape, generator=generator).to(f.dtype) for f in layout.fields}
            store.write(layer, expert, weights)
            content[layer, expert] = weights
    return store, content


@pytest.mark.parametrize("host_bytes", [None, 0, 1100, 5300, 10_000, 10**9])
def test_every_record_comes_back(host_bytes):
    store, content = filled(host_bytes=host_bytes)
    with store:
        for _ in range(2):
            for (layer, expert), weights in content.items():
                views = store.layouts[layer].views(store.record(layer, expert), expert)
                assert all(torch.equal(views[name], weight) for name, weight in weights.items())


@given(st.integers(0, 30_000))
def test_the_host_keeps_within_its_budget_and_nothing_is_lost(host_bytes):
    with ExpertStore([LAYOUT, WIDE], [6, 4], host_bytes=host_bytes) as store:
        total = 6 * 1024 + 4 * 5120
        assert store.host_bytes <= host_bytes
        assert store.host_bytes + store.disk_bytes == total
        if host_bytes < total:
            assert store.host_bytes > host_bytes - 2 * 5120  # and uses it, but for what no record fits into


def test_the_host_share_is_spread_over_the_model():
    with ExpertStore([LAYOUT] * 8, [6] * 8, host_bytes=8 * 6 * 1024 // 2) as store:
        on_disk = np.array([[store.on_disk(layer, expert) for expert in range(6)] for layer in range(8)])
    assert (on_disk.sum(axis=1) == 3).all()


def test_a_failing_disk_is_an_error(monkeypatch):
    store, _ = filled(host_bytes=0)
    with store:
        monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(EngineError, match=r"reading an expert from disk failed.*Input/output error"):
            store.record(0, 0)


def test_a_short_read_is_an_error():
    store, _ = filled(host_bytes=0)
    with store:
        os.ftruncate(store.disk.fileno(), 100)
        with pytest.raises(EngineError, match="returned 100 of 1024 bytes"):
            store.record(0, 0)


def test_changed_bytes_are_an_error():
    store, _ = filled(host_bytes=0)
    with store:
        os.pwrite(store.disk.fileno(), b"\x01\x02", 7)
        with pytest.raises(EngineError, match="checksum"):
            store.record(0, 0)
        store.record(0, 1)


def test_no_room_on_disk_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FinemoeError, match=r"bytes of disk cannot be allocated in .*No space left.*set disk_folder"):
        ExpertStore([LAYOUT], [6], host_bytes=0)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FinemoeError, match="set disk_folder"):
        ExpertStore([LAYOUT], [6], host_bytes=0, disk_folder=tmp_path / "none")


def test_nothing_is_left_behind(tmp_path):
    store, _ = filled(host_bytes=0, disk_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    store.close()


def test_a_record_does_not_queue_up_behind_one_that_another_thread_reads(monkeypatch):
    big = ExpertLayout((Field("up", 0, 0, (6 << 20,), torch.uint8),), 6 << 20)  # more parts than there are readers
    read, go_on, started = os.preadv, threading.Event(), threading.Event()
    with ExpertStore([big, LAYOUT], [1, 1], host_bytes=0) as store:
        store.write(0, 0, {"up": torch.ones(6 << 20, dtype=torch.uint8)})
        store.write(1, 0, {"up": torch.ones(3, 5), "down": torch.ones(5, dtype=torch.bfloat16)})

        def held(file, buffers, offset):
            if offset < big.nbytes:
                started.set()
                assert go_on.wait(10)
            return read(file, buffers, offset)

        monkeypatch.setattr(os, "preadv", held)
        found: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: found.append(store.record(0, 0)))
        thread.start()
        assert started.wait(10)
        assert torch.equal(LAYOUT.views(store.record(1, 0), 0)["up"], torch.ones(3, 5))
        go_on.set()
        thread.join(10)
        assert found[0].all()


def test_without_room_on_disk_no_memory_is_page_locked(monkeypatch):
    made: list[list[int]] = []
    monkeypatch.setattr(tiers, "Arena", lambda sizes, pinned: made.append(sizes))
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FinemoeError, match="set disk_folder"):
        ExpertStore([LAYOUT], [6], host_bytes=1024)
    assert made == []


def test_records_wait_in_host_memory_whatever_the_default_device():
    with torch.device("meta"), ExpertStore([LAYOUT], [6], host_bytes=1024) as store:
        for expert in range(6):
            store.write(0, expert, {name: torch.ones(shape, device="cpu") for name, shape in (("up", (3, 5)), ("down", (5,)))})
        assert store.record(0, 0).device.type == store.record(0, 5).device.type == "cpu"


def test_a_thread_s_readers_and_buffer_end_with_it():
    store, _ = filled(host_bytes=0)
    with store:
        for _ in range(5):
            thread = threading.Thread(target=store.record, args=(0, 0))
            thread.start()
            thread.join(10)
        gc.collect()
        assert store.disk.num_lanes == 0
