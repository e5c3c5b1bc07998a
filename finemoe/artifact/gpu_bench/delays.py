"""Copies that start late and compute that goes on late, at random: what a correct engine must not notice.

A late copy shows a slot that is read too early; late compute one that is overwritten while it is still to be read.
"""

import time
from random import Random

import torch

from finemoe.runtime.engine import Engine
from finemoe.runtime.link import Completion, Link

_MOST_S = 2e-4
_CHUNK_BYTES = 4 << 10  # so that a miniature's expert is several of them
_CYCLES_PER_S = 1.5e9  # of a GPU, roughly


class _Delayed(Completion):
    """A copy after which, on CUDA, compute goes on a random while late."""

    def __init__(self, completion: Completion, device: torch.device, delay_s: float) -> None:
        self._completion, self._device, self._delay_s = completion, device, delay_s
        self.expected_end_s = completion.expected_end_s

    def wait_for_reader(self) -> None:
        self._completion.wait_for_reader()
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda._sleep(int(self._delay_s * _CYCLES_PER_S))

    def wait_for_host(self) -> None:
        self._completion.wait_for_host()


class DelayedLink(Link):
    """A link whose copies wait a random while, on the host and (on CUDA) on the device before the bytes are written, and whose
    readers go on late."""

    def __init__(self, link: Link, device: torch.device, seed: int) -> None:
        self._link, self._random = link, Random(seed)
        self.chunk_bytes, self.chunks_in_flight = _CHUNK_BYTES, link.chunks_in_flight
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, record: torch.Tensor, slot: torch.Tensor, fence: object | None) -> Completion:
        delay_s = self._random.random() * _MOST_S
        time.sleep(delay_s / 2)
        completion = self._link.copy(record, slot, self._later(fence, delay_s))
        return _Delayed(completion, self._device, self._random.random() * _MOST_S)

    def fence(self) -> object | None:
        return self._link.fence()

    def finish(self) -> None:
        self._link.finish()

    def _later(self, fence: object | None, delay_s: float) -> object | None:
        if self._stream is None:
            return fence
        with torch.cuda.stream(self._stream):
            if isinstance(fence, torch.cuda.Event):
                self._stream.wait_event(fence)
            torch.cuda._sleep(int(delay_s * _CYCLES_PER_S))
            event = torch.cuda.Event()
            event.record(self._stream)
        return event


def delay(engine: Engine, seed: int) -> None:
    """Put random delays before every copy of an engine's links, from now on."""
    for number, memory in enumerate(engine.memories.memories):
        memory.link = DelayedLink(memory.link, memory.pool.device, seed + number)
