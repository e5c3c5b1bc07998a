"""The link between host and device memory: how one record's bytes get into a slot, and when they are there.

Three kinds behind one contract: plain memory copies, copies paced to the time a real link would take (for machines without a
GPU), and a CUDA stream of its own. A copy comes back as a Completion; whoever reads the slot waits for it first.
"""

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from finemoe.chunks import CHUNK_BYTES, CUDA_CHUNK_BYTES, paced_chunk_bytes
from finemoe.errors import FinemoeError
from finemoe.units import parse_rate


class Completion(ABC):
    """A copy under way.

    Attributes:
        expected_end_s: when it will end (time.perf_counter) where that is known as soon as it is issued, else None.
    """

    expected_end_s: float | None = None

    @abstractmethod
    def wait_for_reader(self) -> None:
        """Make the device's compute wait for the copy (without blocking the host where the device can wait by itself)."""

    @abstractmethod
    def wait_for_host(self) -> None:
        """Block the calling thread until the bytes have arrived."""


class Link(ABC):
    """One device's link to host memory.

    `fence` marks the moment from which a slot may be overwritten: the compute that read it last.

    Attributes:
        chunk_bytes: how much of a prefetch is one copy. chunks_in_flight: how many of them are issued at a time; together they
            are as long as an on-demand load may have to wait.
    """

    chunk_bytes = CHUNK_BYTES
    chunks_in_flight = 1

    @abstractmethod
    def copy(self, record: torch.Tensor, slot: torch.Tensor, fence: object | None) -> Completion:
        """Start copying record bytes into slot bytes (equal lengths, uint8)."""

    def fence(self) -> object | None:
        """A mark after all compute issued so far; None where compute is finished when its call returns."""
        return None

    def finish(self) -> None:
        """Wait until no copy is under way and no slot is read, whoever issued it: only then may slots and records be given
        back."""
        return None


@dataclass(frozen=True)
class _Done(Completion):
    """Nothing to wait for."""

    def wait_for_reader(self) -> None:
        return None

    def wait_for_host(self) -> None:
        return None


@dataclass(frozen=True)
class _Deadline(Completion):
    """Over when the time has come."""

    expected_end_s: float

    def wait_for_reader(self) -> None:
        self.wait_for_host()

    def wait_for_host(self) -> None:
        remaining_s = self.expected_end_s - time.perf_counter()
        if remaining_s > 0:
            time.sleep(remaining_s)


class MemoryLink(Link):
    """Plain copies in host memory, as fast as they go; done when the call returns."""

    def copy(self, record: torch.Tensor, slot: torch.Tensor, fence: object | None) -> Completion:
        slot.copy_(record)
        return _Done()


class PacedLink(Link):
    """Copies that take the time of a link with the given bandwidth, one after the other.

    Args:
        bytes_per_s: the link's bandwidth.
    """

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s <= 0:
            raise FinemoeError(f"a paced link needs a positive bandwidth, not {bytes_per_s} bytes/s")
        self._bytes_per_s = bytes_per_s
        self.chunk_bytes = paced_chunk_bytes(bytes_per_s)
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def copy(self, record: torch.Tensor, slot: torch.Tensor, fence: object | None) -> Completion:
        slot.copy_(record)
        with self._lock:
            self._free_at_s = max(self._free_at_s, time.perf_counter()) + record.numel() / self._bytes_per_s
            return _Deadline(self._free_at_s)


@dataclass(frozen=True)
class _CudaCompletion(Completion):
    event: torch.cuda.Event
    device: torch.device

    def wait_for_reader(self) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.event)

    def wait_for_host(self) -> None:
        self.event.synchronize()


class CudaLink(Link):
    """Asynchronous copies from page-locked memory on a stream of their own.

    Two chunks are in flight, so that the link goes on while the host learns that one has arrived.
    """

    chunk_bytes = CUDA_CHUNK_BYTES
    chunks_in_flight = 2

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()

    def copy(self, record: torch.Tensor, slot: torch.Tensor, fence: object | None) -> Completion:
        with self._lock, torch.cuda.stream(self._stream):
            if isinstance(fence, torch.cuda.Event):
                self._stream.wait_event(fence)
            slot.copy_(record, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _CudaCompletion(event, self._device)

    def fence(self) -> object | None:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)  # whatever stream still reads a slot, too


def make_link(device: torch.device, description: str | None) -> Link:
    """The link to a device; `description` is None for the real one or "paced:24GB/s".

    Raises:
        FinemoeError: the description is not understood, or paces a real CUDA link.
    """
    if description is None:
        return CudaLink(device) if device.type == "cuda" else MemoryLink()
    kind, _, rate = description.partition(":")
    if kind != "paced":
        raise FinemoeError(f"unknown link {description!r}; write 'paced:24GB/s', or leave it out for the machine's own link")
    if device.type == "cuda":
        raise FinemoeError("a paced link stands in for a real one on CPU-only machines; leave `link` out on CUDA")
    return PacedLink(parse_rate(rate))
