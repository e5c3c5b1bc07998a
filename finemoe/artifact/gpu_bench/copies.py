"""Bandwidth of copying experts from host memory to slots, by chunk size, number in flight, and what inference does meanwhile.

As in the engine, a separate thread issues the copies, and the records are anywhere in the arena.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from finemoe.artifact.gpu_bench.arenas import record_bytes_of, require_room, store_of
from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.clock import finish, host_times_s
from finemoe.artifact.gpu_bench.settings import Settings
from finemoe.artifact.machines.schema import CHUNKED, IDLE, LAUNCHING, MAPPED, PREFETCHED, QUEUED, Copies
from finemoe.runtime.link import Link, make_link, move, outlast
from finemoe.runtime.tiers import ExpertStore

_EXPERTS = 8  # copied one after the other
_LAUNCHES = 30  # of a layer, after which inference waits for the device


@dataclass(frozen=True)
class _Way:
    """How experts are copied; see `Copies`."""

    mode: str
    chunk_bytes: int
    in_flight: int
    main_thread: str


def parts(settings: Settings, device: torch.device) -> Iterator[Part]:
    """One part for all ways of copying, and one for a kernel that reads host memory without a copy."""
    name = f"experts of {record_bytes_of(settings)} bytes"
    yield Part("copies", name, 20.0, lambda: measure(settings, device))
    yield Part("mapped", name, 5.0, lambda: read_by_a_kernel(settings, device))


def measure(settings: Settings, device: torch.device) -> list[Copies]:
    """Measure every way in turn."""
    link = make_link(device, None)
    with _filled(settings, device) as store:
        slots = torch.empty((_EXPERTS, store.record_bytes), dtype=torch.uint8, device=device)
        return [_measured(way, link, store, slots, 4 * settings.num_rounds) for way in _ways(settings, link, store.record_bytes)]


def _ways(settings: Settings, link: Link, record_bytes: int) -> Iterator[_Way]:
    """All copies at once, as the engine prefetches, and all other combinations."""
    chunks = sorted({min(kib << 10, record_bytes) for kib in settings.chunk_kib} | {record_bytes})
    own = min(link.chunk_bytes, record_bytes), link.chunks_in_flight
    for main_thread in (IDLE, LAUNCHING):
        yield _Way(QUEUED, record_bytes, _EXPERTS, main_thread)
        yield _Way(PREFETCHED, *own, main_thread)
        for chunk in chunks:
            for in_flight in settings.chunks_in_flight:
                if (chunk, in_flight) != own:
                    yield _Way(CHUNKED, chunk, in_flight, main_thread)


def _filled(settings: Settings, device: torch.device) -> ExpertStore:
    """The smallest arena, filled with random bytes."""
    record_bytes, num_bytes = record_bytes_of(settings), min(settings.arena_mib) << 20
    require_room(num_bytes, settings)
    store = store_of(num_bytes, record_bytes, device)
    weight = torch.randint(256, (record_bytes,), dtype=torch.uint8)
    for expert in range(store.num_records):
        store.write(0, expert, {"weight": weight})
    return store


def _measured(way: _Way, link: Link, store: ExpertStore, slots: torch.Tensor, rounds: int) -> Copies:
    times_s: list[float] = []
    random = np.random.default_rng(0)

    def work(is_over: threading.Event) -> None:
        for _ in range(rounds + 1):
            if is_over.is_set():
                return
            experts = random.integers(store.num_records, size=len(slots))
            begin_s = time.perf_counter()
            _copy(way, link, [store.record(0, expert) for expert in experts.tolist()], slots)
            times_s.append(time.perf_counter() - begin_s)

    _beside(work, slots.device, way.main_thread)
    rates = slots.numel() / np.array(times_s[1:])  # the first is a warm-up
    settled = (float(np.median(rates)), float(rates.min()), float(rates.max()))
    return Copies(way.mode, slots.numel(), way.chunk_bytes, way.in_flight, way.main_thread, *settled)


def _beside(work: Callable[[threading.Event], None], device: torch.device, main_thread: str) -> None:
    """Run `work` in a separate thread while this one waits, or launches kernels as inference does. If this thread is interrupted,
    the work ends early, and always before this thread goes on."""
    failures: list[BaseException] = []
    # An interrupted join takes a running thread for ended (CPython up to 3.12); waiting for an event does not.
    is_over, has_ended = threading.Event(), threading.Event()

    def guarded() -> None:
        try:
            work(is_over)
        except BaseException as error:
            failures.append(error)
        finally:
            has_ended.set()

    values = torch.zeros(2048, device=device)
    threading.Thread(target=guarded, name="finemoe-copies", daemon=True).start()
    try:
        while main_thread == LAUNCHING and not has_ended.is_set():
            for _ in range(_LAUNCHES):
                values.add_(1.0)
            finish(device)
        has_ended.wait()
    finally:
        is_over.set()
        has_ended.wait()
    if failures:
        raise failures[0]


def _copy(way: _Way, link: Link, records: list[torch.Tensor], slots: torch.Tensor) -> None:
    under_way: deque[int] = deque()
    for record, slot in zip(records, slots, strict=True):
        for source, sink in zip(record.split(way.chunk_bytes), slot.split(way.chunk_bytes), strict=True):
            if len(under_way) == way.in_flight:
                outlast(link, under_way.popleft())
            under_way.append(move(link, source, sink))
    for mark in under_way:
        outlast(link, mark)


class _HostBytes:
    """Page-locked bytes, exposed for direct access by the device."""

    def __init__(self, record: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "data": (record.data_ptr(), False),  # PyTorch refuses read-only data; the memory is still never written
            "shape": (record.numel() // 4,),
            "typestr": "<i4",
            "version": 3,
        }


def read_by_a_kernel(settings: Settings, device: torch.device) -> list[Copies]:
    """How fast a kernel reads page-locked host memory over the link, without a copy."""
    if device.type != "cuda":
        raise NotHere("only a GPU reads host memory over a link")
    with _filled(settings, device) as store:
        if store.pinned_bytes < store.host_bytes:
            raise NotHere("host memory could not be page-locked, so that a kernel cannot read it")
        record = store.record(0, 0)
        there = torch.as_tensor(_HostBytes(record), device=device)
        sums = torch.empty_like(there)
        times_s = host_times_s(lambda: torch.add(there, 1, out=sums), device, 4 * settings.num_rounds)
        finish(device)
        if not torch.equal(sums.cpu(), record.view(torch.int32) + 1):
            raise AssertionError("a kernel read other bytes than the host holds")
    rates = 4 * sums.numel() / times_s
    settled = (float(np.median(rates)), float(rates.min()), float(rates.max()))
    return [Copies(MAPPED, record.numel(), record.numel(), 1, IDLE, *settled)]
