"""This machine's processor: how many cores there are to use, and its name for what is measured on it."""

import os
import platform
from pathlib import Path


def num_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The cores that this process may use, and whose they are."""
    return f"{num_cores()}-core {_name()} ({platform.machine()})"


def _name() -> str:
    """The processor's own name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "CPU")
