"""A CUDA device's link: asynchronous copies from page-locked memory on a separate stream, without the interpreter."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from finemoe.chunks import CUDA_CHUNK_BYTES
from finemoe.errors import EngineError
from finemoe.native import function_addresses
from finemoe.runtime import cuda_copying
from finemoe.runtime.cuda_driver import CudaDriver
from finemoe.runtime.link import Link

_NUM_EVENTS = 4096  # more than there are copies still awaited
_NUM_FENCES = 256


class CudaLink(Link):
    """Copies on a stream. Two chunks are in flight, so that the link stays busy while the host learns that one has arrived.

    Args:
        driver: the driver's functions.
        context, stream: handles of the driver.
        current_stream: returns the handle of the stream on which the calling thread computes.
        kept: an object to keep alive with the link.
    """

    chunk_bytes = CUDA_CHUNK_BYTES
    chunks_in_flight = 2
    waits_on_host = False

    def __init__(
        self, driver: CudaDriver, context: int, stream: int, current_stream: Callable[[], int], kept: object = None
    ) -> None:
        self._driver, self._context, self._current_stream, self._kept = driver, context, current_stream, kept
        self._events = np.array([driver.event() for _ in range(_NUM_EVENTS)], dtype=np.int64)
        self._fences = np.array([driver.event() for _ in range(_NUM_FENCES)], dtype=np.int64)
        self._owned = [*self._events.tolist(), *self._fences.tolist()]  # until they are destroyed
        functions = driver.push_context, driver.pop_context, driver.copy, driver.record, driver.synchronize, driver.wait_event
        self._state = cuda_copying.cuda_state(context, stream, functions, self._events, self._fences)
        self._at = self._state.ctypes.data

    @classmethod
    def of(cls, device: torch.device) -> "CudaLink":
        """Create the link to a device of this machine."""
        driver, stream = CudaDriver.installed(), torch.cuda.Stream(device)
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # creates the context
            context = driver.context()
            return cls(driver, context, stream.cuda_stream, lambda: torch.cuda.current_stream(device).cuda_stream, stream)

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        copy = function_addresses(cuda_copying.copy_to_device, 1, 1, 1, 1, 1)[1]
        return copy, function_addresses(cuda_copying.wait_for_device, 1, 1, 1)[1], self._at

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        return int(cuda_copying.copy_to_device(self._at, sink, source, size, fence))

    def wait(self, mark: int, most_ns: int) -> int:
        return int(cuda_copying.wait_for_device(self._at, mark, most_ns))

    def order(self, mark: int) -> None:
        self.order_on(self._current_stream(), mark)

    def order_on(self, stream: int, mark: int) -> None:
        self._require(cuda_copying.order_stream(self._at, stream, mark))

    def fence(self) -> int:
        return self._require(cuda_copying.fence_stream(self._at, self._current_stream()))

    def finish(self) -> None:
        self._driver.synchronize_context(self._context)  # includes any stream that still reads a slot

    def failure(self) -> BaseException:
        return EngineError(self._driver.text(int(self._state[cuda_copying.ERROR])))

    def close(self) -> None:
        events, self._owned = self._owned, []
        for event in events:
            self._driver.destroy(event)

    def _require(self, found: int) -> int:
        if found < 0:
            raise self.failure()
        return int(found)
