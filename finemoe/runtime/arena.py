"""Host memory for experts: contiguous records in blocks that are page-locked one by one (DESIGN 5, "Tiers").

A CUDA device copies at full speed, and without blocking the host, only from page-locked memory. Allocating it is slow, since the
system must find and clear every page; several threads therefore allocate it, in huge pages if available. A copy must not cross
from one registration into the next, so a block holds whole records.
"""

import mmap
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from finemoe.errors import FinemoeError
from finemoe.interrupts import interrupts_wait
from finemoe.units import format_bytes

_BLOCK_BYTES = 1 << 30
_HUGE_PAGE_BYTES = 2 << 20
_PAGE_BYTES = 4 << 10
_NUM_THREADS = 8


class Arena:
    """Host memory for records.

    Args:
        sizes: size of every record, in bytes.
        pinned: page-lock the memory and allocate all of it at once; what cannot be page-locked becomes ordinary memory, with a
            warning. Otherwise all memory is ordinary, and its pages are allocated as they fill.
        is_sure: the caller knows that the memory is available even if the system reports less: a virtual machine may start small
            and grow with use.
    Raises:
        FinemoeError: the memory is not available.
    """

    def __init__(self, sizes: Sequence[int], pinned: bool, is_sure: bool = False) -> None:
        self._sizes, num_bytes = list(sizes), sum(sizes)
        self._places, block_sizes = _cut(sizes, _BLOCK_BYTES if pinned else num_bytes)
        self._blocks: dict[int, _Block] = {}
        try:
            if pinned:
                if not is_sure:
                    _map(num_bytes).close()  # the system refuses an impossible total, but not block by block
                self._take_pinned(block_sizes, num_bytes)
            else:
                self._blocks = {number: _pageable(size) for number, size in enumerate(block_sizes)}
        except MemoryError as error:
            raise FinemoeError(
                f"{num_bytes} bytes of host memory cannot be allocated; set host_memory to keep less there"
            ) from error

    @property
    def pinned_bytes(self) -> int:
        """How many bytes are page-locked."""
        return sum(len(block.memory) for block in self._blocks.values() if block.is_pinned)

    def record(self, index: int) -> torch.Tensor:
        """One record's bytes, [size of the record] uint8."""
        number, start = self._places[index]
        return self._blocks[number].memory[start : start + self._sizes[index]]

    def close(self) -> None:
        """Free the memory; closing twice is harmless."""
        for block in self._blocks.values():
            block.unregister()  # before it is unmapped
        self._blocks = {}

    def _take_pinned(self, block_sizes: list[int], num_bytes: int) -> None:
        maker = _BlockMaker()

        def make(number: int) -> None:
            self._blocks[number] = maker.make(block_sizes[number])

        num_threads = max(1, min(_NUM_THREADS, len(block_sizes)))
        try:
            with interrupts_wait(), ThreadPoolExecutor(num_threads, thread_name_prefix="finemoe-arena") as pool:
                list(pool.map(make, range(len(block_sizes))))
            if self.pinned_bytes < num_bytes:
                _warn_of_pageable(num_bytes - self.pinned_bytes, num_bytes, maker.failure)
        except BaseException:
            self.close()
            raise


def _cut(sizes: Sequence[int], most_bytes: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Every record's (block, start in bytes), and the size of every block: at most `most_bytes`, unless one record is larger."""
    places: list[tuple[int, int]] = []
    blocks: list[int] = []
    for size in sizes:
        if not blocks or blocks[-1] + size > most_bytes:
            blocks.append(0)
        places.append((len(blocks) - 1, blocks[-1]))
        blocks[-1] += size
    return places, blocks


@dataclass
class _Block:
    """Host memory, [n] uint8; registered with CUDA in place, unless CUDA allocated it or it is ordinary memory."""

    memory: torch.Tensor
    is_pinned: bool
    is_registered: bool = False

    def unregister(self) -> None:
        if self.is_registered:
            torch.cuda.cudart().cudaHostUnregister(self.memory.data_ptr())
        self.is_registered = False


class _CannotPin(Exception):
    """One way to page-lock memory failed; the message gives the reason."""


class _BlockMaker:
    """Makes blocks for several threads, each in the best way that has not failed so far.

    Attributes:
        failure: why the best way failed.
    """

    def __init__(self) -> None:
        self._ways: list[Callable[[int], _Block]] = [_registered, _allocated, _pageable]
        self._lock = threading.Lock()
        self.failure = ""

    def make(self, num_bytes: int) -> _Block:
        while True:
            way = self._ways[0]
            try:
                return way(num_bytes)
            except _CannotPin as error:
                reason = str(error)
            self._give_up(way, reason)  # outside `except`, the failed block is already freed

    def _give_up(self, way: Callable[[int], _Block], reason: str) -> None:
        with self._lock:
            if self._ways[0] is way:  # unless another thread already did
                self._ways.pop(0)
                self.failure = self.failure or reason


def _registered(num_bytes: int) -> _Block:
    """Page-lock memory in place: torch would round a CUDA allocation up to a power of 2."""
    memory, cudart = _mapped(num_bytes), torch.cuda.cudart()
    status = cudart.cudaHostRegister(memory.data_ptr(), num_bytes, 0)
    if int(status) != 0:
        with suppress(RuntimeError):  # otherwise this thread's next kernel reports the error
            torch.zeros(1, device="cuda")
        raise _CannotPin(f"CUDA error {int(status)}: {cudart.cudaGetErrorString(status)}")
    return _Block(memory, is_pinned=True, is_registered=True)


def _allocated(num_bytes: int) -> _Block:
    """Let CUDA allocate page-locked memory; torch keeps it for later allocations when it is freed."""
    try:
        return _Block(torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True), is_pinned=True)
    except RuntimeError as error:
        raise _CannotPin(str(error).partition("\n")[0]) from error


def _pageable(num_bytes: int) -> _Block:
    try:
        return _Block(torch.empty(num_bytes, dtype=torch.uint8, device="cpu"), is_pinned=False)
    except RuntimeError as error:
        raise MemoryError(str(error)) from error


def _mapped(num_bytes: int) -> torch.Tensor:
    """Memory that starts on a huge page, [num_bytes] uint8, all pages present; it is unmapped with its last view."""
    pages = _map(num_bytes + _HUGE_PAGE_BYTES)
    memory = np.frombuffer(pages, dtype=np.uint8)
    skipped = -memory.ctypes.data % _HUGE_PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE, skipped, num_bytes)
    memory = memory[skipped : skipped + num_bytes]
    memory[::_PAGE_BYTES] = 0  # runs without the interpreter's lock
    return torch.from_numpy(memory)


def _map(num_bytes: int) -> mmap.mmap:
    """Private zeros (shared ones get no huge pages)."""
    try:
        return mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error


def _warn_of_pageable(pageable_bytes: int, num_bytes: int, reason: str) -> None:
    locked = f"{format_bytes(num_bytes - pageable_bytes)} of {format_bytes(num_bytes)}"
    warnings.warn(
        f"only {locked} of host memory is page-locked ({reason}); copies of the rest are slower and block the host: "
        "lower host_memory, or raise the limit on locked memory (ulimit -l)",
        RuntimeWarning,
        stacklevel=2,
    )
