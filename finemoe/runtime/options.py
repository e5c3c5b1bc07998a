"""The options of an engine, checked once and converted to the units that the runtime uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finemoe.cache.capacity import byte_count
from finemoe.errors import FinemoeError

STREAM_PROMPTS_FROM = 256  # tokens: from here on, nearly every expert of a layer is demanded (docs/engine.md, "Long prompts")
_SLOTS = ("packed", "unpacked")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs, apart from what its policy gets; fields as in `finemoe.offload`."""

    expert_memory: int | float | str
    policy: str
    policy_options: Mapping[str, Any]
    eviction: str | None
    devices: tuple[torch.device, ...]
    link: str | None
    host_bytes: int | None
    disk_folder: str | Path | None
    asynchronous: bool | None
    grouped_from: int | None
    slots: str


def engine_options(
    expert_memory: int | float | str,
    policy: str,
    *,
    eviction: str | None = None,
    devices: Any = None,
    link: str | None = None,
    host_memory: int | str | None = None,
    disk_folder: str | Path | None = None,
    asynchronous: bool | None = None,
    grouped_from: int | None = None,
    slots: str = "packed",
    **policy_options: Any,
) -> EngineOptions:
    """Check options as users write them, and convert them to the units of `EngineOptions`.

    Raises:
        FinemoeError: an option is unknown or out of range.
    """
    if slots not in _SLOTS:
        raise FinemoeError(f"slots is {slots!r}; use 'packed', or 'unpacked' to keep unpacked experts next to their slots")
    if grouped_from is not None and grouped_from < 1:
        raise FinemoeError(f"grouped_from is {grouped_from}; give a number of tokens, or omit it to stay bit-equal to eager")
    return EngineOptions(
        expert_memory=expert_memory,
        policy=policy,
        policy_options=policy_options,
        eviction=eviction,
        devices=device_list(devices),
        link=link,
        host_bytes=None if host_memory is None else byte_count(host_memory, "host_memory"),
        disk_folder=disk_folder,
        asynchronous=asynchronous,
        grouped_from=grouped_from,
        slots=slots,
    )


def device_list(devices: Any) -> tuple[torch.device, ...]:
    """The devices denoted by a device, a list of devices, a number of devices, or None (one).

    Raises:
        FinemoeError: a device does not exist, or there are not that many.
    """
    if devices is None:
        devices = 1
    if isinstance(devices, int):
        return _first_devices(devices)
    if isinstance(devices, str | torch.device):
        devices = [devices]
    if not isinstance(devices, Sequence) or not devices:
        raise FinemoeError(f"devices must be a device, a list of devices, or a number, not {devices!r}")
    found = tuple(_device(device) for device in devices)
    if len({device.type for device in found}) > 1:
        raise FinemoeError(f"devices {[str(device) for device in found]} are of different kinds; give devices of one kind")
    return found


def _first_devices(count: int) -> tuple[torch.device, ...]:
    if count < 1:
        raise FinemoeError(f"devices is {count}; give at least one")
    if not torch.cuda.is_available():
        return (torch.device("cpu"),) * count
    if count > torch.cuda.device_count():
        raise FinemoeError(f"devices is {count}, but there are {torch.cuda.device_count()} CUDA devices; give fewer")
    return tuple(torch.device("cuda", index) for index in range(count))


def _device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise FinemoeError(f"unknown device {device!r}; use 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise FinemoeError(f"device {device!r} was requested, but this machine has no usable CUDA device")
        found = torch.device("cuda", found.index or 0)
        if found.index >= torch.cuda.device_count():
            raise FinemoeError(f"device {device!r} was requested, but there are {torch.cuda.device_count()} CUDA devices")
    return found
