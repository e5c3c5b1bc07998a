"""The link between host and device memory: how bytes get from a record into a slot, and when they are there.

A link is two functions by address, which compiled code calls outside the interpreter's lock (`transitions`): one begins a copy
and gives a mark, the other waits for it. Plain memory copies, copies paced to the time of a real link (for machines without a
GPU) and a CUDA stream of its own are compiled; a link whose class has its own `copy` and `wait` in Python is called back.
"""

import ctypes
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch

from finemoe.chunks import CHUNK_BYTES, paced_chunk_bytes
from finemoe.errors import EngineError, FinemoeError
from finemoe.native import function_addresses
from finemoe.runtime import copying
from finemoe.units import parse_rate

_LONG_NS = 1_000_000_000


class Link(ABC):
    """One device's link to host memory.

    Attributes:
        chunk_bytes: how much of a prefetch is one copy. chunks_in_flight: how many of them are issued at a time; together they
            are as long as an on-demand load may have to wait.
        waits_on_host: whether whoever reads a slot must wait for the copy itself, since compute cannot.
    """

    chunk_bytes = CHUNK_BYTES
    chunks_in_flight = 1
    waits_on_host = True

    @abstractmethod
    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        """Begin to copy.

        Args:
            sink, source: addresses. size: in bytes. fence: what the sink may be overwritten after, as `fence` gave it, or 0.
        Returns:
            The copy's mark, 0 or more. A compiled link gives -1 where it failed: see `failure`.
        """

    @abstractmethod
    def wait(self, mark: int, most_ns: int) -> int:
        """Wait for a copy, for about so long at most: 1 if it is over, 0 if not. (A compiled one: -1 where it failed.)"""

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Of the two functions in C, and what they are handed first."""
        self._callbacks = _callback(self, "copy", 4), _callback(self, "wait", 2)
        copy, wait = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in self._callbacks)
        return copy, wait, 0

    def order(self, mark: int) -> None:
        """Let compute that is issued from now on wait for a copy, where `waits_on_host` is False."""
        return None

    def order_on(self, stream: int, mark: int) -> None:
        """Let what is issued on a stream, by its handle, wait for a copy or a fence, likewise."""
        return None

    def end_s(self, mark: int) -> float | None:
        """When a copy will be over (time.perf_counter), where that is known as soon as it is begun."""
        return None

    def fence(self) -> int:
        """A mark after all compute issued so far, after which a slot may be overwritten; 0 where compute is finished when its
        call returns."""
        return 0

    def finish(self) -> None:
        """Wait until no copy is under way and no slot is read, whoever issued it: only then may slots and records be given
        back."""
        return None

    def close(self) -> None:
        """Give back what it took, once nobody copies any more."""
        return None

    def failure(self) -> BaseException:
        """What the last copy or wait that failed has failed with."""
        found: BaseException = self.__dict__.pop("_failure", None) or EngineError("a copy failed")
        return found


def move(link: Link, record: torch.Tensor, room: torch.Tensor, fence: int = 0) -> int:
    """Begin to copy a record's bytes into others, [n] uint8 each; returns the mark.

    Raises:
        EngineError: it failed.
    """
    mark = link.copy(room.data_ptr(), record.data_ptr(), record.numel(), fence)
    if mark < 0:
        raise link.failure()
    return mark


def outlast(link: Link, mark: int) -> None:
    """Wait for a copy on the host.

    Raises:
        EngineError: it failed.
    """
    while (found := link.wait(mark, _LONG_NS)) == 0:
        pass
    if found < 0:
        raise link.failure()


def _callback(link: Link, name: str, num_arguments: int) -> Any:
    """A method in Python as a function in C; what it raises is kept for `failure`."""

    def call(_: int, *arguments: int) -> int:
        try:
            return int(getattr(link, name)(*arguments))
        except BaseException as error:
            link.__dict__["_failure"] = error
            return -1

    return ctypes.CFUNCTYPE(*[ctypes.c_int64] * (2 + num_arguments))(call)


class MemoryLink(Link):
    """Plain copies in host memory, as fast as they go; done when the call returns."""

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        return (*_c_addresses(copying.copy_memory, copying.wait_memory), 0)

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        return int(copying.copy_memory(0, sink, source, size, fence))

    def wait(self, mark: int, most_ns: int) -> int:
        return 1


class PacedLink(Link):
    """Copies that take the time of a link with the given bandwidth, one after the other; a mark is when it is over, in ns.

    Args:
        bytes_per_s: the link's bandwidth.
    """

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s <= 0:
            raise FinemoeError(f"a paced link needs a positive bandwidth, not {bytes_per_s} bytes/s")
        self.chunk_bytes = paced_chunk_bytes(bytes_per_s)
        self._state = copying.pace(bytes_per_s)

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        return (*_c_addresses(copying.copy_paced, copying.wait_paced), self._state.ctypes.data)

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        return int(copying.copy_paced(self._state.ctypes.data, sink, source, size, fence))

    def wait(self, mark: int, most_ns: int) -> int:
        return int(copying.wait_paced(self._state.ctypes.data, mark, most_ns))

    def end_s(self, mark: int) -> float | None:
        return mark / 1e9


def _c_addresses(copy: Any, wait: Any) -> tuple[int, int]:
    return function_addresses(copy, 1, 1, 1, 1, 1)[1], function_addresses(wait, 1, 1, 1)[1]


def make_link(device: torch.device, description: str | None) -> Link:
    """The link to a device; `description` is None for the real one or "paced:24GB/s".

    Raises:
        FinemoeError: the description is not understood, or paces a real CUDA link.
    """
    if description is None:
        return _cuda_link(device) if device.type == "cuda" else MemoryLink()
    kind, _, rate = description.partition(":")
    if kind != "paced":
        raise FinemoeError(f"unknown link {description!r}; write 'paced:24GB/s', or leave it out for the machine's own link")
    if device.type == "cuda":
        raise FinemoeError("a paced link stands in for a real one on CPU-only machines; leave `link` out on CUDA")
    return PacedLink(parse_rate(rate))


def _cuda_link(device: torch.device) -> Link:
    from finemoe.runtime.cuda_link import CudaLink

    return CudaLink.of(device)
