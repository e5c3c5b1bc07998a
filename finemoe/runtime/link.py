"""The link between host and device memory: how bytes get from a record into a slot, and when they have arrived.

A link is a pair of function addresses, which compiled code calls outside the interpreter's lock (`transitions`): one starts a
copy and returns a mark, the other waits for it. Plain memory copies, copies paced to the time of a real link (for machines
without a GPU) and copies on a separate CUDA stream are compiled; a link class with its own `copy` and `wait` in Python is
called back.
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
        chunk_bytes: size of one copy of a prefetch.
        chunks_in_flight: how many copies are issued at a time; an on-demand load may have to wait for all of them.
        waits_on_host: whether the reader of a slot must itself wait for the copy, since compute cannot.
    """

    chunk_bytes = CHUNK_BYTES
    chunks_in_flight = 1
    waits_on_host = True

    @abstractmethod
    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        """Start a copy.

        Args:
            sink, source: addresses.
            size: in bytes.
            fence: mark after which the sink may be overwritten, from `fence`, or 0.
        Returns:
            The copy's mark, 0 or more. A compiled link returns -1 on failure: see `failure`.
        """

    @abstractmethod
    def wait(self, mark: int, most_ns: int) -> int:
        """Wait for a copy for about `most_ns` at most; returns 1 if it is over, 0 if not. (A compiled link: -1 on failure.)"""

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Addresses of the two C functions, and their first argument."""
        self._callbacks = _callback(self, "copy", 4), _callback(self, "wait", 2)
        copy, wait = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in self._callbacks)
        return copy, wait, 0

    def order(self, mark: int) -> None:
        """Make compute that is issued from now on wait for a copy, if `waits_on_host` is False."""
        return None

    def order_on(self, stream: int, mark: int) -> None:
        """Make what is issued on a stream, given by its handle, wait for a copy or a fence, if `waits_on_host` is False."""
        return None

    def end_s(self, mark: int) -> float | None:
        """When a copy will be over (time.perf_counter), if that is known when it starts."""
        return None

    def fence(self) -> int:
        """A mark after all compute issued so far, after which a slot may be overwritten; 0 if compute is finished when its call
        returns."""
        return 0

    def finish(self) -> None:
        """Wait until no copy is in flight and no slot is being read, whichever thread issued it: only then may slots and records
        be freed."""
        return None

    def close(self) -> None:
        """Free the link's resources once no thread copies any more."""
        return None

    def failure(self) -> BaseException:
        """The error of the last failed copy or wait."""
        found: BaseException = self.__dict__.pop("_failure", None) or EngineError("a copy failed")
        return found


def move(link: Link, record: torch.Tensor, room: torch.Tensor, fence: int = 0) -> int:
    """Start copying a record's bytes to `room`, [n] uint8 each; returns the mark.

    Raises:
        EngineError: the copy failed.
    """
    mark = link.copy(room.data_ptr(), record.data_ptr(), record.numel(), fence)
    if mark < 0:
        raise link.failure()
    return mark


def outlast(link: Link, mark: int) -> None:
    """Wait for a copy on the host.

    Raises:
        EngineError: the copy failed.
    """
    while (found := link.wait(mark, _LONG_NS)) == 0:
        pass
    if found < 0:
        raise link.failure()


def _callback(link: Link, name: str, num_arguments: int) -> Any:
    """Wrap a Python method as a C function; `failure` returns what it raises."""

    def call(_: int, *arguments: int) -> int:
        try:
            return int(getattr(link, name)(*arguments))
        except BaseException as error:
            link.__dict__["_failure"] = error
            return -1

    return ctypes.CFUNCTYPE(*[ctypes.c_int64] * (2 + num_arguments))(call)


class MemoryLink(Link):
    """Plain copies in host memory at full speed; each is done when the call returns."""

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        return (*_c_addresses(copying.copy_memory, copying.wait_memory), 0)

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        return int(copying.copy_memory(0, sink, source, size, fence))

    def wait(self, mark: int, most_ns: int) -> int:
        return 1


class PacedLink(Link):
    """Copies that take as long as on a link with the given bandwidth, one after the other; a mark is the end time, in ns.

    Args:
        bytes_per_s: the link's bandwidth.
    """

    chunks_in_flight = 2  # as with CUDA; together they take as long as one chunk

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s <= 0:
            raise FinemoeError(f"a paced link needs a positive bandwidth, not {bytes_per_s} bytes/s")
        self.chunk_bytes = paced_chunk_bytes(bytes_per_s) // self.chunks_in_flight
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
    """The link to a device; `description` is None for the real one, or "paced:24GB/s".

    Raises:
        FinemoeError: the description is not understood, or it paces a real CUDA link.
    """
    if description is None:
        return _cuda_link(device) if device.type == "cuda" else MemoryLink()
    kind, _, rate = description.partition(":")
    if kind != "paced":
        raise FinemoeError(f"unknown link {description!r}; use 'paced:24GB/s', or omit it for the machine's own link")
    if device.type == "cuda":
        raise FinemoeError("a paced link stands in for a real one on CPU-only machines; omit `link` on CUDA")
    return PacedLink(parse_rate(rate))


def _cuda_link(device: torch.device) -> Link:
    from finemoe.runtime.cuda_link import CudaLink

    return CudaLink.of(device)
