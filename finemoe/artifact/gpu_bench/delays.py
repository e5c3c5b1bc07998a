"""Copies that start late and compute that resumes late, at random: a correct engine is unaffected.

A late copy exposes a slot that is read too early. Late compute exposes a slot that is overwritten before it has been read.
"""

import time
from collections import deque
from random import Random

import torch

from finemoe.runtime.engine import Engine
from finemoe.runtime.link import Link

_MOST_S = 2e-4
_CHUNK_BYTES = 4 << 10  # splits a miniature's expert into several chunks
_NUM_EVENTS = 4096
_CYCLES_PER_S = 1.5e9  # approximate clock rate of a GPU


class DelayedLink(Link):
    """A link whose copies are delayed randomly, on the host and (on CUDA) on the device before the bytes are written, and whose
    readers resume late."""

    def __init__(self, link: Link, device: torch.device, seed: int) -> None:
        self._link, self._random = link, Random(seed)
        self.chunk_bytes, self.chunks_in_flight = _CHUNK_BYTES, link.chunks_in_flight
        self.waits_on_host = link.waits_on_host
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._events: deque[torch.cuda.Event] = deque(maxlen=_NUM_EVENTS)  # kept alive until no stream waits for them

    def copy(self, sink: int, source: int, size: int, fence: int) -> int:
        delay_s = self._random.random() * _MOST_S
        time.sleep(delay_s / 2)
        mark = self._link.copy(sink, source, size, self._later(fence, delay_s))
        if mark < 0:
            raise self._link.failure()
        return mark

    def wait(self, mark: int, most_ns: int) -> int:
        return self._link.wait(mark, most_ns)

    def order(self, mark: int) -> None:
        self._link.order(mark)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda._sleep(int(self._random.random() * _MOST_S * _CYCLES_PER_S))

    def fence(self) -> int:
        return self._link.fence()

    def finish(self) -> None:
        self._link.finish()

    def close(self) -> None:
        self._link.close()

    def _later(self, fence: int, delay_s: float) -> int:
        """A fence that is reached some time after this one."""
        if self._stream is None:
            return fence
        with torch.cuda.stream(self._stream):
            if fence:
                self._link.order_on(int(self._stream.cuda_stream), fence)
            torch.cuda._sleep(int(delay_s * _CYCLES_PER_S))
            event = torch.cuda.Event()
            event.record(self._stream)
        self._events.append(event)
        return int(event.cuda_event)


def delay(engine: Engine, seed: int) -> None:
    """From now on, delay every copy of an engine's links at random."""
    for number, memory in enumerate(engine.memories.memories):
        memory.connect(DelayedLink(memory.link, memory.pool.device, seed + number))
