"""Time to allocate host memory as the engine does: touched and, if a GPU reads it, page-locked."""

import time
from collections.abc import Iterator

import torch

from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.machine import available_bytes
from finemoe.artifact.gpu_bench.settings import Settings
from finemoe.artifact.gpu_bench.subjects import size_of_target
from finemoe.artifact.machines.schema import Arenas
from finemoe.runtime.expert_layout import ExpertLayout, Field
from finemoe.runtime.tiers import ExpertStore
from finemoe.units import format_bytes

_GUESSED_BYTES_PER_S = 2e9  # to touch and page-lock memory


def parts(settings: Settings, device: torch.device) -> Iterator[Part]:
    """One part per arena size, for records as large as the first model's experts."""
    record_bytes = record_bytes_of(settings)
    for mib in settings.arena_mib:

        def run(num_bytes: int = mib << 20) -> list[Arenas]:
            require_room(num_bytes, settings)
            return [measure(num_bytes, record_bytes, device)]

        yield Part("arenas", f"{mib} MiB for experts of {record_bytes} bytes", 2.0 + (mib << 20) / _GUESSED_BYTES_PER_S, run)


def require_room(num_bytes: int, settings: Settings) -> None:
    """Refuse to allocate more host memory than is available.

    Raises:
        NotHere: it is more.
    """
    present = available_bytes(settings.host_memory_bytes)
    if num_bytes > present:
        raise NotHere(f"{format_bytes(num_bytes)} of host memory are asked for, and {format_bytes(present)} may be taken")


def record_bytes_of(settings: Settings) -> int:
    """Size of an expert of the first model."""
    return size_of_target(settings.targets()[0]).expert_bytes


def store_of(num_bytes: int, record_bytes: int, device: torch.device) -> ExpertStore:
    """An arena with room for at least one record, allocated as the engine does for models on that device."""
    layout = ExpertLayout((Field("weight", 0, 0, (record_bytes,), torch.uint8),), record_bytes)
    return ExpertStore([layout], [max(1, num_bytes // record_bytes)], pinned=device.type == "cuda", is_sure=True)


def measure(num_bytes: int, record_bytes: int, device: torch.device) -> Arenas:
    """Allocate one arena and time it."""
    torch.zeros(1, device=device)  # initialise a device on first use
    begin_s = time.perf_counter()
    with store_of(num_bytes, record_bytes, device) as store:
        seconds = time.perf_counter() - begin_s
        return Arenas(store.host_bytes, record_bytes, store.pinned_bytes, seconds)
