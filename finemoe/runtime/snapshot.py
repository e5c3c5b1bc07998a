"""A tensor's values as they are now, to be read later, perhaps elsewhere, without making the device or the caller wait."""

from collections import deque

import numpy as np
import torch

_BUFFER_BYTES = 64 << 10


class Snapshot:
    """On CUDA a copy is queued at once behind the work that makes the values; on the CPU they are copied when somebody says that
    they are to outlast the model's next step, which may overwrite its tensor.

    Args:
        values: [..., n], of any floating-point type, or on CUDA of whole numbers.
        buffers: where copies from CUDA land; None allocates memory for this one.
    """

    def __init__(self, values: torch.Tensor, buffers: "HostBuffers | None" = None) -> None:
        flat = values.detach() if values.requires_grad else values  # which costs more than asking, in every layer
        flat = flat if flat.dim() == 2 else flat.reshape(-1, flat.shape[-1])
        self._buffers = buffers
        self._buffer: HostBuffer | None = None
        self._values: np.ndarray | None = None
        self._host: torch.Tensor | None = flat  # until it has been read
        if _is_on_cuda(flat):
            self._buffer = HostBuffer(flat.nbytes) if buffers is None else buffers.take(flat.nbytes)
            self._host = self._buffer.copy(flat)

    def keep(self) -> None:
        """Whoever reads it does so later: the model goes on."""
        if self._buffer is None and self._host is not None:
            self._values, self._host = _copied(self._host), None

    def rows(self, rows: np.ndarray | None) -> np.ndarray:
        """The values of some rows (all if None), [B, n] float32, not to be written to; waits for the copy."""
        if self._buffer is not None and self._host is not None:
            self._buffer.wait()
            self._values = _copied(self._host)
            self._give_back(self._buffer)
        values = self._values if self._host is None else _on_the_host(self._host)
        assert values is not None
        return values if rows is None else values[rows]

    def whole_numbers(self) -> np.ndarray:
        """Values of a type of whole numbers, [..., n], once; waits for the copy."""
        assert self._buffer is not None
        assert self._host is not None
        self._buffer.wait()
        values: np.ndarray = self._host.numpy().copy()
        self._give_back(self._buffer)
        return values

    def _give_back(self, buffer: "HostBuffer") -> None:
        self._buffer = self._host = None
        if self._buffers is not None:
            self._buffers.give_back(buffer)


def _copied(values: torch.Tensor) -> np.ndarray:
    """Values on the host as float32, of their own also where they are that already."""
    array = _on_the_host(values)
    return array.copy() if values.dtype == torch.float32 else array


def _on_the_host(values: torch.Tensor) -> np.ndarray:
    """As float32, contiguous, as compiled code expects it."""
    return np.ascontiguousarray((values if values.dtype == torch.float32 else values.float()).numpy())


class HostBuffer:
    """Page-locked memory for one copy at a time, and the event at its end."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        self._event = torch.cuda.Event()

    def warm(self, device: torch.device) -> None:
        """Have the event made, which its first use does."""
        self._event.record(torch.cuda.current_stream(device))

    def copy(self, values: torch.Tensor) -> torch.Tensor:
        """Begin to copy values from the device; returns where they will be."""
        host = self.memory[: values.nbytes].view(values.dtype).view(values.shape)
        host.copy_(values, non_blocking=True)
        self._event.record(torch.cuda.current_stream(values.device))
        return host

    def wait(self) -> None:
        """Until the copy is over."""
        self._event.synchronize()


class HostBuffers:
    """Buffers that the snapshots of one device take and give back: allocating page-locked memory takes too long for every layer.

    A buffer comes back when its reader has waited for the end of the copy and has copied out what it holds, so that no stream has
    anything to do with it any more: whatever stream copies into it next has nobody to wait for. One whose snapshot is dropped
    unread does not come back, since its copy may still be under way (torch keeps the memory until it is over).

    Args:
        device: whose values are copied. count: how many are there from the start; more are made when all are taken.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._free = deque(HostBuffer(_BUFFER_BYTES) for _ in range(count))  # which threads may share
        for buffer in self._free:
            buffer.warm(device)

    @property
    def num_free(self) -> int:
        """How many are there to be taken."""
        return len(self._free)

    def take(self, num_bytes: int) -> HostBuffer:
        """A buffer with room for so many bytes."""
        if num_bytes > _BUFFER_BYTES:
            return HostBuffer(num_bytes)
        try:
            return self._free.pop()
        except IndexError:
            return HostBuffer(_BUFFER_BYTES)

    def give_back(self, buffer: HostBuffer) -> None:
        """Let others have a buffer that nobody writes into or reads from any more."""
        if len(buffer.memory) == _BUFFER_BYTES:
            self._free.append(buffer)

    def close(self) -> None:
        """Let the free ones go."""
        self._free.clear()


def host_buffers(device: torch.device, count: int) -> HostBuffers | None:
    """Buffers for snapshots of a device's values; None where they need none."""
    return HostBuffers(device, count) if device.type == "cuda" else None


def _is_on_cuda(values: torch.Tensor) -> bool:
    return values.is_cuda
