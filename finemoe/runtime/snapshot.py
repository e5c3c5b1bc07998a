"""Captures a tensor's current values for a later read, possibly in another thread, without blocking device or caller."""

from collections import deque

import numpy as np
import torch

_BUFFER_BYTES = 64 << 10


class Snapshot:
    """The values of a tensor at one moment.

    On CUDA a copy is queued at once behind the work that makes the values. On the CPU they are copied by `keep`, which is
    needed if they must outlast the model's next step, because that may overwrite the tensor.

    Args:
        values: [..., n], of any floating-point type, or on CUDA of an integer type.
        buffers: where copies from CUDA land; None allocates memory for this snapshot.
    """

    def __init__(self, values: torch.Tensor, buffers: "HostBuffers | None" = None) -> None:
        flat = values.detach() if values.requires_grad else values  # `detach` in every layer costs more than this check
        flat = flat if flat.dim() == 2 else flat.reshape(-1, flat.shape[-1])
        self._buffers = buffers
        self._buffer: HostBuffer | None = None
        self._values: np.ndarray | None = None
        self._host: torch.Tensor | None = flat  # until the values are read
        if _is_on_cuda(flat):
            self._buffer = HostBuffer(flat.nbytes) if buffers is None else buffers.take(flat.nbytes)
            self._host = self._buffer.copy(flat)

    def keep(self) -> None:
        """Preserve the values for a later read: the model continues."""
        if self._buffer is None and self._host is not None:
            self._values, self._host = _copied(self._host), None

    def rows(self, rows: np.ndarray | None) -> np.ndarray:
        """The values of some rows (all if None), [B, n] float32, read-only; waits for the copy."""
        if self._buffer is not None and self._host is not None:
            self._buffer.wait()
            self._values = _copied(self._host)
            self._give_back(self._buffer)
        values = self._values if self._host is None else _on_the_host(self._host)
        assert values is not None
        return values if rows is None else values[rows]

    def whole_numbers(self) -> np.ndarray:
        """Values of an integer type, [..., n]; can be read once; waits for the copy."""
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
    """Values on the host as a separate float32 array, even if they already are float32."""
    array = _on_the_host(values)
    return array.copy() if values.dtype == torch.float32 else array


def _on_the_host(values: torch.Tensor) -> np.ndarray:
    """Contiguous float32, as compiled code expects."""
    return np.ascontiguousarray((values if values.dtype == torch.float32 else values.float()).numpy())


class HostBuffer:
    """Page-locked memory for one copy at a time, and the event at its end."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        self._event = torch.cuda.Event()

    def warm(self, device: torch.device) -> None:
        """Create the event, which happens at its first use."""
        self._event.record(torch.cuda.current_stream(device))

    def copy(self, values: torch.Tensor) -> torch.Tensor:
        """Start copying values from the device; returns the host tensor that they go to."""
        host = self.memory[: values.nbytes].view(values.dtype).view(values.shape)
        host.copy_(values, non_blocking=True)
        self._event.record(torch.cuda.current_stream(values.device))
        return host

    def wait(self) -> None:
        """Wait until the copy is over."""
        self._event.synchronize()


class HostBuffers:
    """A pool of buffers for the snapshots of one device: allocating page-locked memory takes too long to do in every layer.

    A buffer returns to the pool once its reader has waited for the copy and copied the contents out. No stream uses it any more
    then, so the next stream that copies into it need not wait. A buffer whose snapshot is dropped unread does not return, since
    its copy may still be in flight (torch keeps the memory until it is over).

    Args:
        device: the device whose values are copied.
        count: how many buffers exist from the start; more are made when all are in use.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._free = deque(HostBuffer(_BUFFER_BYTES) for _ in range(count))  # a deque is thread-safe
        for buffer in self._free:
            buffer.warm(device)

    @property
    def num_free(self) -> int:
        """Number of free buffers."""
        return len(self._free)

    def take(self, num_bytes: int) -> HostBuffer:
        """Take a buffer with room for `num_bytes`."""
        if num_bytes > _BUFFER_BYTES:
            return HostBuffer(num_bytes)
        try:
            return self._free.pop()
        except IndexError:
            return HostBuffer(_BUFFER_BYTES)

    def give_back(self, buffer: HostBuffer) -> None:
        """Return a buffer that no thread or stream uses any more."""
        if len(buffer.memory) == _BUFFER_BYTES:
            self._free.append(buffer)

    def close(self) -> None:
        """Drop the free buffers."""
        self._free.clear()


def host_buffers(device: torch.device, count: int) -> HostBuffers | None:
    """Buffers for snapshots of a device's values; None if the device needs none."""
    return HostBuffers(device, count) if device.type == "cuda" else None


def _is_on_cuda(values: torch.Tensor) -> bool:
    return values.is_cuda
