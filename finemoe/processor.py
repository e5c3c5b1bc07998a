"""This machine's processor: its model name and the number of usable cores, which measurements record."""

import os
import platform
from pathlib import Path


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The number of cores that this process may use and the processor's model name."""
    return f"{num_cores()}-core {_name()} ({platform.machine()})"


def _name() -> str:
    """The processor's model name, if the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "CPU")
