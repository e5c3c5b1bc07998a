"""Rates of this machine, each measured separately: the link as the engine copies, memory, arithmetic, and a search."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from finemoe.chunks import CHUNK_BYTES
from finemoe.errors import FinemoeError

if TYPE_CHECKING:
    import torch

    from finemoe.runtime.link import Link

RECORD_BYTES, SMALL_BYTES = 32 << 20, 1 << 20  # two sizes of copies; large models' experts take 17 to 350 MB
_NUM_RECORDS = 4  # enough that the next record to copy is in no cache
_WIDTH = 4096  # of the matrices, as in a large model's experts
_MATRIX_BYTES, _CUDA_MATRIX_BYTES = 256 << 20, 1 << 30  # larger than caches
_STORES, _LAYERS, _EXPERTS = (500, 2000), 8, 64  # maps in the searched stores, and the size of each map
_CALLS = {"cpu": 1, "cuda": 20}  # calls per measurement; on a GPU a single call is too short


def line_through(sizes: Sequence[float], times_s: Sequence[float]) -> tuple[float, float]:
    """Fit a line, by least squares, to times that grow with sizes.

    Args:
        sizes, times_s: [n] each, with at least two different sizes.
    Returns:
        Units per second, and the seconds at size 0, at least 0.
    Raises:
        FinemoeError: larger sizes do not take longer, so there is no rate.
    """
    design = np.stack([np.asarray(sizes, dtype=float), np.ones(len(sizes))], axis=1)
    per_unit_s, start_s = np.linalg.lstsq(design, np.asarray(times_s, dtype=float), rcond=None)[0]
    if per_unit_s <= 0:
        raise FinemoeError("larger sizes took no longer, so no rate can be computed; measure again when the machine is less busy")
    return float(1 / per_unit_s), max(0.0, float(start_s))


def link_rates(device: "torch.device", rounds: int) -> tuple[float, float, float]:
    """Rates of copying experts from host memory into a slot, as the engine copies them.

    Returns:
        Bytes per second, overhead of a copy in seconds, and overhead of a chunk of a prefetch in seconds, beyond the first two.
    Raises:
        FinemoeError: there is too little memory, or no rate can be computed.
    """
    import torch

    from finemoe.runtime.expert_layout import ExpertLayout, Field
    from finemoe.runtime.link import make_link
    from finemoe.runtime.tiers import ExpertStore

    layout = ExpertLayout((Field("weight", 0, 0, (RECORD_BYTES,), torch.uint8),), RECORD_BYTES)
    with ExpertStore([layout], [_NUM_RECORDS], pinned=device.type == "cuda") as store:
        records = [store.record(0, number) for number in range(_NUM_RECORDS)]
        for record in records:
            record.fill_(1)
        slot, link = torch.empty(RECORD_BYTES, dtype=torch.uint8, device=device), make_link(device, None)
        try:
            times = [_copies_s(link, records[number % _NUM_RECORDS], slot) for number in range(rounds + 1)]
        finally:
            link.finish()
            link.close()
    small_s, whole_s, chunked_s = np.median(times[1:], axis=0).tolist()
    bytes_per_s, latency_s = line_through([SMALL_BYTES, RECORD_BYTES], [small_s, whole_s])
    return bytes_per_s, latency_s, chunk_overhead(chunked_s, bytes_per_s, latency_s)


def chunk_overhead(chunked_s: float, bytes_per_s: float, latency_s: float) -> float:
    """Overhead of one simulator chunk beyond its bytes and the link's latency; chunked_s: time of a record in chunks."""
    return max(0.0, (chunked_s - RECORD_BYTES / bytes_per_s) / (RECORD_BYTES // CHUNK_BYTES) - latency_s)


def read_rate(device: "torch.device", dtype: "torch.dtype", rounds: int) -> float:
    """Bytes per second that a product of a matrix, larger than caches, with a single row reads.

    Raises:
        FinemoeError: there is too little memory.
    """
    import torch
    from torch.nn.functional import linear

    row, matrix = torch.ones(1, _WIDTH, device=device, dtype=dtype), matrix_on(device, dtype)
    return matrix.nbytes / _median_s(lambda: linear(row, matrix), device, rounds)


def arithmetic_rate(device: "torch.device", dtype: "torch.dtype", rounds: int) -> float:
    """Floating-point operations per second of a compute-bound matrix product.

    Raises:
        FinemoeError: there is too little memory.
    """
    import torch
    from torch.nn.functional import linear

    num_rows, width = (_WIDTH, _WIDTH) if device.type == "cuda" else (256, 1024)
    rows, matrix = torch.ones(num_rows, _WIDTH, device=device, dtype=dtype), matrix_on(device, dtype)[:width]
    return 2.0 * num_rows * matrix.numel() / _median_s(lambda: linear(rows, matrix), device, rounds)


def search_rate(rounds: int) -> float:
    """Bytes of stored maps per second that a trajectory search reads.

    Raises:
        FinemoeError: no rate can be computed.
    """
    from finemoe.maps.search import TrajectorySearch
    from finemoe.maps.store import ExpertMapStore, trajectory_search_bytes

    maps = np.random.default_rng(0).dirichlet(np.ones(_EXPERTS), (max(_STORES), _LAYERS)).astype(np.float32)
    stores = [ExpertMapStore(_LAYERS, _EXPERTS, embedding_dim=0, capacity=size) for size in _STORES]
    for store in stores:
        store.add(maps[: store.capacity])

    def search(store: ExpertMapStore) -> None:
        following = TrajectorySearch(store, 1)
        for layer in range(_LAYERS):
            following.observe(layer, maps[:1, layer])
            following.nearest()

    times = [[_seconds(partial(search, store)) / _LAYERS for store in stores] for _ in range(rounds + 1)]
    read_bytes = [float(trajectory_search_bytes(size, _EXPERTS)) for size in _STORES]
    return line_through(read_bytes, np.median(times[1:], axis=0).tolist())[0]


def matrix_on(device: "torch.device", dtype: "torch.dtype") -> "torch.Tensor":
    """A matrix [n, 4096], larger than caches and at most a quarter of the free memory.

    Raises:
        FinemoeError: that is not enough to measure with.
    """
    import torch

    wanted = _CUDA_MATRIX_BYTES if device.type == "cuda" else _MATRIX_BYTES
    num_bytes = min(wanted, free_bytes(device) // 4)
    if num_bytes < SMALL_BYTES:
        raise FinemoeError(f"hardware 'here': no memory is free on {device.type} to measure with; stop other programs")
    return torch.full((num_bytes // (_WIDTH * dtype.itemsize), _WIDTH), 0.01, device=device, dtype=dtype)


def free_bytes(device: "torch.device") -> int:
    """Free memory of a device; for a CPU, what the system reports as available to programs.

    Raises:
        FinemoeError: the system does not report it.
    """
    from finemoe.runtime.free_memory import free_bytes as told

    num_bytes = told(device)
    if num_bytes is None:
        raise FinemoeError(
            "hardware 'here': this system does not report how much memory is free; describe the machine in a YAML file"
        )
    return num_bytes


def _copies_s(link: "Link", record: "torch.Tensor", slot: "torch.Tensor") -> tuple[float, float, float]:
    """Times of a small copy, a whole record, and a record in the engine's own chunks."""
    from finemoe.runtime.link import move, outlast

    def whole(num_bytes: int) -> None:
        outlast(link, move(link, record[-num_bytes:], slot[:num_bytes]))

    def chunked() -> None:
        marks: list[int] = []
        for source, sink in zip(record.split(link.chunk_bytes), slot.split(link.chunk_bytes), strict=True):
            if len(marks) == link.chunks_in_flight:
                outlast(link, marks.pop(0))
            marks.append(move(link, source, sink))
        for mark in marks:
            outlast(link, mark)

    return _seconds(lambda: whole(SMALL_BYTES)), _seconds(lambda: whole(RECORD_BYTES)), _seconds(chunked)


def _median_s(call: Callable[[], object], device: "torch.device", rounds: int) -> float:
    """The time of one call, after one to warm up."""
    import torch

    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    count = _CALLS[device.type]

    def several() -> None:
        for _ in range(count):
            call()
        finish()

    several()
    return float(np.median([_seconds(several) for _ in range(rounds)])) / count


def _seconds(call: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    call()
    return time.perf_counter() - begin_s
