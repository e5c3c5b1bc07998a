"""The machine that a plan is for: a described testbed, or this one, with the memory of its host."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.advice.machine_rates import free_bytes
from finemoe.advice.this_machine import machine_title, write_testbed
from finemoe.errors import FinemoeError
from finemoe.simulation.testbed import Testbed
from finemoe.units import parse_rate

if TYPE_CHECKING:
    import torch

HERE = "here"
_PACED = "paced:"
RESERVE_SHARE, MOST_RESERVE_BYTES = 0.08, 600 << 20  # of a device's memory: the driver's context, activations, fragmentation


@dataclass(frozen=True)
class Place:
    """A machine.

    Attributes:
        testbed: its rates and the memory of a device. host_bytes: host memory for experts; None if it is not known.
        is_cpu: whether slots are in host memory, too. is_here: whether it is this machine. link: the paced link that a CPU
            imitates, as the engine takes it; None for the machine's own link. shares_memory: whether the host's copy of the
            experts comes out of the device's memory, as on a CPU without a limit of its own.
    """

    testbed: Testbed
    host_bytes: int | None
    is_cpu: bool
    is_here: bool
    link: str | None = None
    shares_memory: bool = False

    def reserve_bytes(self, device_bytes: float) -> int:
        """Memory of a device that is left free for everything but weights, keys and values."""
        return int(min(RESERVE_SHARE * device_bytes, MOST_RESERVE_BYTES))


def place_of(
    hardware: str | Path | Testbed | None,
    link: str | None = None,
    host_bytes: int | None = None,
    memory_bytes: int | None = None,
) -> Place:
    """The machine by its name.

    Args:
        hardware: name of a testbed in data/hardware, a YAML file, or a Testbed; None or "here" for this machine, which is
            measured once and remembered.
        link: the link's rate instead of the machine's own, such as "24GB/s"; "paced:24GB/s" for a CPU that imitates it.
        host_bytes: host memory for experts; None takes this machine's, and leaves another's unknown.
        memory_bytes: memory of each device; None takes the machine's.
    Raises:
        FinemoeError: there is no such testbed, or the link is not a rate.
    """
    is_measured = hardware is None or str(hardware) == HERE
    testbed = remembered_testbed() if is_measured else Testbed.load(hardware)  # type: ignore[arg-type]
    is_here = is_measured or testbed.title == machine_title(default_device())
    is_cpu = default_device().type == "cpu" if is_here else "in host memory" in testbed.title
    if is_here and host_bytes is None:
        host_bytes = host_memory_bytes() // (1 if memory_bytes or not is_cpu else 2)  # the other half is for the rest
    shares = is_cpu and memory_bytes is None
    if memory_bytes is not None:
        testbed = replace(testbed, memory_bytes=memory_bytes)
    if link is None:
        return Place(testbed, host_bytes, is_cpu, is_here, None, shares)
    if link.startswith(_PACED) and not is_cpu:
        raise FinemoeError(f"link {link!r}: a paced link is for machines without a GPU; give the rate alone")
    rate = parse_rate(link.removeprefix(_PACED))
    host = max(rate * testbed.devices, testbed.host_bytes_per_s)
    testbed = replace(testbed, link_bytes_per_s=rate, host_bytes_per_s=host)
    return Place(testbed, host_bytes, is_cpu, is_here, link if link.startswith(_PACED) else None, shares)


def described_place(hardware: str | None) -> tuple[Place, bool]:
    """The machine for a description that takes no time to make, and whether its rates are known: this machine is not measured
    unless it is named. Its steps are computed from its rates.

    Raises:
        FinemoeError: there is no such testbed.
    """
    if hardware is not None or testbed_file().is_file():
        return replace(place_of(hardware), is_here=False), True
    device = default_device()
    unknown = [field.name for field in fields(Testbed) if field.name not in ("title", "devices", "memory_bytes", "hits_first")]
    rates: dict[str, Any] = dict.fromkeys(unknown, 1.0)
    testbed = Testbed(title=machine_title(device), devices=1, memory_bytes=free_bytes(device), **rates)
    host_bytes, is_cpu = host_memory_bytes(), device.type == "cpu"
    return Place(testbed, host_bytes // 2 if is_cpu else host_bytes, is_cpu, is_here=False, shares_memory=is_cpu), False


def remembered_testbed() -> Testbed:
    """This machine, measured on the first call and read from a file in the user's cache folder later; free memory is current.

    Raises:
        FinemoeError: it cannot be measured.
    """
    device, path = default_device(), testbed_file()
    if path.is_file() and (kept := Testbed.load(path)).title == machine_title(device):
        return replace(kept, memory_bytes=free_bytes(device))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_testbed(path)


def testbed_file() -> Path:
    """Where this machine's measurement is kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "finemoe" / "here.yaml"


def host_memory_bytes() -> int:
    """Memory of this machine that programs may use now.

    Raises:
        FinemoeError: the system does not report it.
    """
    import torch

    return free_bytes(torch.device("cpu"))


def default_device() -> "torch.device":
    """The device that the engine takes by default."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
