"""Host memory in blocks: no registration cuts a record, what cannot be page-locked is said once, nothing stays registered."""

import ctypes
import mmap
import signal
import threading
import warnings

import pytest
import torch

from finemoe.errors import FinemoeError
from finemoe.runtime import arena as arena_module
from finemoe.runtime.arena import Arena
from finemoe.runtime.expert_layout import ExpertLayout, Field
from finemoe.runtime.tiers import ExpertStore

PAGE_BYTES, HUGE_PAGE_BYTES = 4096, 2 << 20
BLOCK_BYTES = 10 * PAGE_BYTES
SIZES = [3 * PAGE_BYTES, 256, 12 * PAGE_BYTES, 256, 7 * PAGE_BYTES, 3 * PAGE_BYTES, 5 * PAGE_BYTES, 6 * PAGE_BYTES]
BLOCKS = [[0, 1], [2], [3, 4], [5, 6], [7]]  # the records of each, when none holds more than BLOCK_BYTES but for a larger record


class FakeCudart:
    """The CUDA runtime as far as registrations go: `fails_at` is how many succeed before none does."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.registered: dict[int, int] = {}
        self.num_calls, self.fails_at = 0, fails_at
        self.lock = threading.Lock()

    def cudaHostRegister(self, pointer: int, num_bytes: int, flags: int) -> int:
        with self.lock:
            self.num_calls += 1
            if self.num_calls > self.fails_at:
                return 2
            assert all(pointer >= begin + size or pointer + num_bytes <= begin for begin, size in self.registered.items())
            assert is_there(pointer, num_bytes), "untouched pages would be found and cleared one by one, under the driver's lock"
            self.registered[pointer] = num_bytes
            return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        ctypes.string_at(pointer, self.registered.pop(pointer))  # still mapped
        return 0

    def cudaGetErrorString(self, status: int) -> str:
        return {2: "out of memory"}[status]


def is_there(pointer: int, num_bytes: int) -> bool:
    """Whether every page has been touched."""
    flags = (ctypes.c_ubyte * (-(-num_bytes // mmap.PAGESIZE)))()
    assert ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(pointer), ctypes.c_size_t(num_bytes), flags) == 0
    return all(flag & 1 for flag in flags)


@pytest.fixture
def install(monkeypatch):
    """Puts a fake in the CUDA runtime's place, with small blocks."""

    def install(cudart: FakeCudart) -> FakeCudart:
        monkeypatch.setattr(arena_module, "_BLOCK_BYTES", BLOCK_BYTES)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *args, device: zeros(*args))  # a device that is there
        return cudart

    return install


@pytest.fixture
def allocated(monkeypatch) -> list[int]:
    """Sizes of torch's pinned allocations, which are given out as ordinary memory."""
    sizes: list[int] = []
    empty = torch.empty

    def fake(*args, pin_memory=False, **options):
        if pin_memory:
            sizes.append(args[0])
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", fake)
    return sizes


def check_records(arena: Arena, sizes: list[int]) -> None:
    """Every record has its size and keeps what is written into it, whatever is written into the others."""
    for index, size in enumerate(sizes):
        assert arena.record(index).shape == (size,)
        arena.record(index).fill_(index + 1)
    for index in range(len(sizes)):
        assert bool((arena.record(index) == index + 1).all())


@pytest.mark.parametrize("pinned", [False, True])
def test_records_lie_apart(install, pinned):
    install(FakeCudart())
    arena = Arena(SIZES, pinned)
    check_records(arena, SIZES)
    arena.close()


def test_every_record_lies_inside_one_registration_that_begins_with_a_huge_page(install):
    cudart = install(FakeCudart())
    arena = Arena(SIZES, pinned=True)
    assert arena.pinned_bytes == sum(SIZES)
    found: dict[int, list[int]] = {}
    for index, size in enumerate(SIZES):
        pointer = arena.record(index).data_ptr()
        inside = [begin for begin, length in cudart.registered.items() if begin <= pointer and pointer + size <= begin + length]
        assert len(inside) == 1
        found.setdefault(inside[0], []).append(index)
    assert sorted(found.values()) == BLOCKS
    assert all(cudart.registered[begin] == sum(SIZES[index] for index in records) for begin, records in found.items())
    assert all(begin % HUGE_PAGE_BYTES == 0 for begin in cudart.registered)
    arena.close()
    arena.close()
    assert cudart.registered == {}
    assert arena.pinned_bytes == 0


def test_huge_pages_are_asked_for(install, monkeypatch):
    install(FakeCudart())
    advice: list[tuple[int, int, int]] = []

    class NotedMap(mmap.mmap):
        def madvise(self, option, start, length):
            begin = ctypes.addressof(ctypes.c_char.from_buffer(self))
            advice.append((option, begin + start, length))
            super().madvise(option, start, length)

    monkeypatch.setattr(mmap, "mmap", NotedMap)
    arena = Arena(SIZES, pinned=True)
    blocks = {arena.record(records[0]).data_ptr(): sum(SIZES[index] for index in records) for records in BLOCKS}
    assert sorted(advice) == sorted((mmap.MADV_HUGEPAGE, begin, size) for begin, size in blocks.items())
    arena.close()


def test_a_kernel_without_huge_pages_will_do(install, monkeypatch):
    install(FakeCudart())

    class PoorMap(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", PoorMap)
    arena = Arena(SIZES, pinned=True)
    assert arena.pinned_bytes == sum(SIZES)
    arena.close()


def test_eight_blocks_are_registered_at_a_time(install):
    all_here = threading.Barrier(8)

    class MeetingCudart(FakeCudart):
        def cudaHostRegister(self, pointer, num_bytes, flags):
            all_here.wait(20)
            return super().cudaHostRegister(pointer, num_bytes, flags)

    install(MeetingCudart())
    Arena([BLOCK_BYTES] * 16, pinned=True).close()


@pytest.mark.parametrize("fails_at", [0, 2])
def test_what_cannot_be_registered_is_allocated_page_locked(install, allocated, fails_at):
    cudart = install(FakeCudart(fails_at))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arena = Arena(SIZES, pinned=True)
    assert arena.pinned_bytes == sum(SIZES)
    assert len(cudart.registered) == fails_at
    assert sum(allocated) + sum(cudart.registered.values()) == sum(SIZES)
    check_records(arena, SIZES)
    arena.close()
    assert cudart.registered == {}


def test_registering_is_not_tried_again_once_it_has_failed(install, allocated):
    cudart = install(FakeCudart(0))
    Arena([BLOCK_BYTES] * 40, pinned=True).close()
    assert cudart.num_calls <= 8  # by each thread once at most
    assert allocated == [BLOCK_BYTES] * 40


@pytest.mark.parametrize("fails_at", [0, 2])
def test_what_cannot_be_page_locked_is_ordinary_memory_and_one_warning_says_so(install, fails_at):
    """(Without CUDA, torch has no page-locked memory to give.)"""
    cudart = install(FakeCudart(fails_at))
    with pytest.warns(RuntimeWarning, match=r"CUDA error 2: out of memory.*lower host_memory.*ulimit -l") as noted:
        arena = Arena([BLOCK_BYTES] * 4, pinned=True)
    assert len(noted) == 1
    assert f"only {fails_at * 40}.0 KiB of 160.0 KiB" in str(noted[0].message).replace("only 0 B", "only 0.0 KiB")
    assert arena.pinned_bytes == sum(cudart.registered.values()) == fails_at * BLOCK_BYTES
    check_records(arena, [BLOCK_BYTES] * 4)
    arena.close()
    assert cudart.registered == {}


def test_a_failed_registration_is_not_left_as_the_last_error_of_its_thread(install, allocated, monkeypatch):
    failed, cleared = set(), set()

    class NotingCudart(FakeCudart):
        def cudaHostRegister(self, pointer, num_bytes, flags):
            failed.add(threading.get_ident())
            return 2

    def zeros(*_, device):
        cleared.add(threading.get_ident())
        raise RuntimeError("CUDA error: out of memory")

    install(NotingCudart())
    monkeypatch.setattr(torch, "zeros", zeros)
    Arena(SIZES, pinned=True).close()
    assert failed == cleared != set()


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("driver shutting down")])
def test_nothing_stays_registered_after_an_error(install, error):
    class FailingCudart(FakeCudart):
        def cudaHostRegister(self, pointer, num_bytes, flags):
            if self.num_calls >= 3:
                raise error
            return super().cudaHostRegister(pointer, num_bytes, flags)

    cudart = install(FailingCudart())
    with pytest.raises((FinemoeError, RuntimeError), match="driver" if isinstance(error, RuntimeError) else "set host_memory"):
        Arena([BLOCK_BYTES] * 40, pinned=True)
    assert cudart.num_calls >= 3
    assert cudart.registered == {}


@pytest.mark.parametrize("call", [1, 3, 40])
def test_nothing_stays_registered_after_an_interrupt(install, call):
    class InterruptedCudart(FakeCudart):
        def cudaHostRegister(self, pointer, num_bytes, flags):
            status = super().cudaHostRegister(pointer, num_bytes, flags)
            with self.lock:
                self.num_left -= 1
                if self.num_left == 0:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return status

        num_left = call

    cudart = install(InterruptedCudart())
    with pytest.raises(KeyboardInterrupt):
        Arena([BLOCK_BYTES] * 40, pinned=True)
    assert cudart.num_calls >= call
    assert cudart.registered == {}


def test_nothing_stays_registered_where_a_warning_is_an_error(install):
    cudart = install(FakeCudart(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            Arena(SIZES, pinned=True)
    assert cudart.registered == {}


@pytest.mark.parametrize("pinned", [False, True])
def test_memory_that_cannot_be_had_is_one_clear_line(install, pinned):
    """Each block could be had, but all of them exceed what can be addressed."""
    cudart = install(FakeCudart())
    with pytest.raises(FinemoeError, match=f"{1 << 56} bytes of host memory cannot be allocated; set host_memory to keep less"):
        Arena([1 << 46] * (1 << 10), pinned)
    assert cudart.num_calls == 0


def test_a_machine_that_grows_as_it_is_used_is_believed_where_the_caller_is_sure(install, monkeypatch):
    """Such a machine refuses the whole, and gives every block."""
    install(FakeCudart())
    whole = arena_module._map

    def refusing(num_bytes: int) -> object:
        if num_bytes == 40 * BLOCK_BYTES:
            raise MemoryError("more than there is")
        return whole(num_bytes)

    monkeypatch.setattr(arena_module, "_map", refusing)
    with pytest.raises(FinemoeError, match="bytes of host memory cannot be allocated"):
        Arena([BLOCK_BYTES] * 40, pinned=True)
    arena = Arena([BLOCK_BYTES] * 40, pinned=True, is_sure=True)
    assert arena.pinned_bytes == 40 * BLOCK_BYTES
    arena.close()


def test_ordinary_memory_needs_no_cuda_and_is_one_block_whose_pages_are_taken_as_they_fill(monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: pytest.fail("no device was asked for"))
    monkeypatch.setattr(arena_module, "_BLOCK_BYTES", BLOCK_BYTES)
    num_bytes = 64 << 20
    arena = Arena([num_bytes // 4] * 4, pinned=False)
    assert arena.pinned_bytes == 0
    assert len({arena.record(index).untyped_storage().data_ptr() for index in range(4)}) == 1
    first_page = -(-arena.record(0).data_ptr() // PAGE_BYTES) * PAGE_BYTES
    assert not is_there(first_page, num_bytes // 2)
    arena.close()


@pytest.mark.parametrize("pinned", [False, True])
def test_a_store_says_how_much_is_page_locked(install, pinned):
    cudart = install(FakeCudart())
    layout = ExpertLayout((Field("up", 0, 0, (64,), torch.float32),), 256)
    with ExpertStore([layout] * 2, [4, 4], host_bytes=5 * 256, pinned=pinned) as store:
        assert store.host_bytes in (4 * 256, 5 * 256)
        assert store.pinned_bytes == (store.host_bytes if pinned else 0) == sum(cudart.registered.values())
    assert cudart.registered == {}


def test_nothing_to_hold():
    arena = Arena([], pinned=True)
    assert arena.pinned_bytes == 0
    arena.close()
