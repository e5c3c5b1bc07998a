"""How much memory a device has free."""

import os
from pathlib import Path

import torch

_TOLD = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, with what PyTorch holds there unused; for a CPU, what the system reports as available to
    programs. None if that is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    lines = _TOLD.read_text(encoding="utf-8").splitlines() if _TOLD.is_file() else []
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    try:
        return kibibytes[0] << 10 if kibibytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return None
