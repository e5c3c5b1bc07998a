"""The machine that measures."""

import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

_HOST_SHARE = 0.9  # share of the host's memory that may be used
_NVIDIA_SMI = ("nvidia-smi", "--id=0")


def compute_device() -> torch.device:
    """The first CUDA device, or the CPU if there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def is_usable(device: torch.device) -> bool:
    """Whether a device still responds; after some errors nothing works until the process ends."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def host_memory_bytes() -> int:
    """The machine's current memory; a virtual machine may start small and grow with use."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(told_bytes: int | None) -> int:
    """Usable host memory in bytes: the user's value, or most of what the machine reports."""
    return int(_HOST_SHARE * host_memory_bytes()) if told_bytes is None else told_bytes


def host_facts() -> dict[str, str]:
    """The settings that decide how fast host memory can be allocated and read, as the system reports them, or "unknown"."""
    link = "pcie.link.gen.current,pcie.link.width.current,driver_version"
    return {
        "overcommit_memory": _first_line(Path("/proc/sys/vm/overcommit_memory")),
        "transparent_hugepage": _first_line(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "memlock": "unlimited" if _memlock() == resource.RLIM_INFINITY else str(_memlock()),
        "pcie": _said([*_NVIDIA_SMI, f"--query-gpu={link}", "--format=csv,noheader"]),
    }


def _memlock() -> int:
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError):
        return "unknown"


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine_title() -> str:
    """The first GPU's name, or the name of the substitute on a machine without one."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_properties(0).name)
    return f"{_num_cores()}-core {platform.machine()} CPU, pools of memory as devices"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fix_attention() -> None:
    """Compute attention without cuDNN, which makes a plan for every new number of keys. On an H200 with PyTorch 2.11, the first
    decode step at each context length took 57 ms longer, so the first measurement paid for all later ones."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def machine_facts() -> dict[str, Any]:
    """The facts about the machine that a reader needs, ready for JSON."""
    import transformers

    from finemoe.compiling import IS_COMPILED

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "title": machine_title(),
        "executor": "measured",
        "devices": [{"name": one.name, "memory_bytes": one.total_memory} for one in properties],
        "cores": _num_cores(),
        "host_memory_bytes": host_memory_bytes(),
        "host": host_facts(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": "without cuDNN" if count else "on the CPU",
        "is_compiled": IS_COMPILED,
    }
