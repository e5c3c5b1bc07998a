"""Which machine measured."""

import os
import platform
from typing import Any

import torch


def compute_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def is_usable(device: torch.device) -> bool:
    """Whether a device still answers: after some errors nothing works until the process ends."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def host_memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_facts() -> dict[str, Any]:
    """What a reader must know of the machine, ready for JSON."""
    import transformers

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "title": properties[0].name if properties else f"{cores}-core {platform.machine()} CPU, pools of memory as devices",
        "executor": "measured",
        "devices": [{"name": one.name, "memory_bytes": one.total_memory} for one in properties],
        "cores": cores,
        "host_memory_bytes": host_memory_bytes(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
