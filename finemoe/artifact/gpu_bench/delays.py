"""Copies that start late and compute that goes on late, at random: what a correct engine must not notice.

A late copy shows a slot that is read too early; late compute one that is overwritten while it is still to be read.
"""

import time
from collections import deque
from random import Random

import torch

from finemoe.runtime.engine import Engine
from finemoe.runtime.link import Link

_MOST_S = 2e-4
_CHUNK_BYTES = 4 << 10  # so that a miniature's expert is several of them
_NUM_EVENTS = 4096
_CYCLES_PER_S = 1.5e9  # of a GPU, roughly


class DelayedLink(Link):
    """A link whose copies wait a random while, on the host and (on CUDA) on the device before the bytes are written, and whose
    readers go on late."""

    def __init__(self, link: Link, device: torch.device, seed: int) -> None:
        self._link, self._random = link, Random(seed)
        self.chunk_bytes, self.chunks_in_flight = _CHUNK_BYTES, link.chunks_in_flight
        self.waits_on_host = link.waits_on_host
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._events: deque[torch.cuda.Event] = deque(maxlen=_NUM_EVENTS)  # which live as long as anybody waits for them

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
        """A fence that is reached after this one, a while later."""
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
    """Put random delays before every copy of an engine's links, from now on."""
    for number, memory in enumerate(engine.memories.memories):
        memory.connect(DelayedLink(memory.link, memory.pool.device, seed + number))
