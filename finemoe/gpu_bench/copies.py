"""How fast bytes get from host memory into expert slots, by transfer and chunk size, over the engine's own link."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from finemoe.gpu_bench.bench import Part
from finemoe.gpu_bench.clock import host_times_s
from finemoe.gpu_bench.settings import Settings
from finemoe.measured import Copies
from finemoe.runtime.link import Completion, Link, make_link

QUEUED, ONE_BY_ONE, PREFETCHED = "queued", "one by one", "as prefetched"


def parts(settings: Settings, device: torch.device) -> Iterator[Part]:
    """One part for each transfer size."""
    for mib in settings.transfer_mib:

        def run(mib: int = mib) -> list[Copies]:
            return measure(mib << 20, [kib << 10 for kib in settings.chunk_kib], device, settings.num_rounds)

        yield Part("copies", f"{mib} MiB", 0.5, run)


def measure(num_bytes: int, chunks: list[int], device: torch.device, rounds: int) -> list[Copies]:
    """All copies at once and one by one, at every chunk size that the transfer has room for, and as the engine prefetches."""
    link = make_link(device, None)
    source = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda").random_()
    slot = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    sizes = [*[one for one in chunks if one < num_bytes], num_bytes]
    ways = [(mode, chunk, most) for chunk in sizes for mode, most in ((QUEUED, num_bytes), (ONE_BY_ONE, 1))]
    ways.append((PREFETCHED, min(link.chunk_bytes, num_bytes), link.chunks_in_flight))
    rows = []
    for mode, chunk, most in ways:

        def call(chunk: int = chunk, most: int = most) -> None:
            _copy(link, source, slot, chunk, most)

        rates = num_bytes / host_times_s(call, device, 4 * rounds)
        rows.append(Copies(mode, num_bytes, chunk, float(np.median(rates)), float(rates.min()), float(rates.max())))
    return rows


def _copy(link: Link, source: torch.Tensor, slot: torch.Tensor, chunk: int, most_in_flight: int) -> None:
    under_way: deque[Completion] = deque()
    for record, sink in zip(source.split(chunk), slot.split(chunk), strict=True):
        if len(under_way) == most_in_flight:
            under_way.popleft().wait_for_host()
        under_way.append(link.copy(record, sink, None))
    for completion in under_way:
        completion.wait_for_host()
