"""The machine that this runs on, measured in a few seconds as a testbed: `finemoe advise --hardware here`.

One device, the engine's default: the first CUDA device, otherwise the CPU, where the link is the engine's copy from host memory
into a slot. The file has the same form as those in data/hardware.
"""

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemoe.advice.machine_rates import (
    RECORD_BYTES,
    SMALL_BYTES,
    arithmetic_rate,
    free_bytes,
    link_rates,
    read_rate,
    search_rate,
)
from finemoe.advice.machine_steps import NUM_MAPS, SHAPES, TYPICAL_LAYERS, hand_over_s, step_overheads
from finemoe.errors import FinemoeError, first_line
from finemoe.files import require_place, write_text
from finemoe.processor import processor
from finemoe.simulation.testbed import Testbed

if TYPE_CHECKING:
    import torch

_UNUSED = "not measured, since one device does not use it"
_FEWEST = 3  # rounds, the minimum for a median


@dataclass(frozen=True)
class MeasuredTestbed:
    """A testbed and the sources of its constants.

    Attributes:
        testbed: its title describes the machine. sources: the source of every constant but the title, in words.
    """

    testbed: Testbed
    sources: dict[str, str]

    def save(self, path: str | Path) -> Testbed:
        """Write it to a file that `Testbed.load` reads; returns the testbed as read back.

        Raises:
            FinemoeError: the file cannot be written.
        """
        import yaml

        constants = {name: _plain(value) for name, value in asdict(self.testbed).items() if name != "title"}
        content: dict[str, Any] = {"title": self.testbed.title}
        content |= {name: {"value": value, "source": self.sources[name]} for name, value in constants.items()}
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1 << 16, allow_unicode=True)
        write_text(path, f"# SI units; every constant states its source.\n{text}")
        return Testbed.load(Path(path))


def write_testbed(path: str | Path, seconds: float = 5, dtype: str = "bfloat16") -> Testbed:
    """Measure this machine and write it as a testbed; other arguments as in `measure_testbed`.

    Args:
        path: path of a .yaml file.
    Raises:
        FinemoeError: the file cannot be written, or something cannot be measured.
    """
    if Path(path).suffix not in (".yaml", ".yml"):
        raise FinemoeError(f"{path}: a testbed is a .yaml file; use that suffix")
    require_place(path)
    return measure_testbed(seconds, dtype).save(path)


def measure_testbed(seconds: float = 5, dtype: str = "bfloat16") -> MeasuredTestbed:
    """Measure this machine.

    Args:
        seconds: approximate duration, excluding the import of PyTorch and Transformers; sets the number of repetitions.
        dtype: data type of the weights in computation; the simulator counts two bytes for each.
    Raises:
        FinemoeError: something cannot be measured.
    """
    import torch

    if not 0 < seconds < float("inf"):
        raise FinemoeError(f"seconds is {seconds!r}; it must be more than 0")
    rounds = max(_FEWEST, round(seconds))
    try:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        return _measured(device, getattr(torch, dtype), rounds)
    except FinemoeError:
        raise
    except (RuntimeError, MemoryError, OSError, AttributeError) as error:
        raise FinemoeError(
            f"hardware 'here': this machine cannot be measured ({first_line(error)}); describe it in a YAML file instead"
        ) from error


def _measured(device: "torch.device", dtype: "torch.dtype", rounds: int) -> MeasuredTestbed:
    import torch

    memory_bytes = free_bytes(device)  # before anything is allocated
    with torch.inference_mode():
        read, arithmetic = (rate(device, dtype, rounds) for rate in (read_rate, arithmetic_rate))
    link, latency_s, chunk_s = link_rates(device, rounds)
    steps = step_overheads(device, dtype, 2 * rounds)
    testbed = Testbed(
        title=machine_title(device),
        devices=1,
        memory_bytes=memory_bytes,
        flops_per_s=arithmetic,
        memory_bytes_per_s=read,
        link_bytes_per_s=link,
        link_latency_s=latency_s,
        host_bytes_per_s=link,
        interconnect_bytes_per_s=1e12,
        interconnect_latency_s=0.0,
        layer_overhead_s=steps.layer_s + steps.once_s / TYPICAL_LAYERS,
        expert_overhead_s=steps.expert_s,
        search_bytes_per_s=search_rate(10 * rounds),
        search_overhead_s=steps.search_s,
        chunk_overhead_s=chunk_s,
        hand_over_s=hand_over_s(),
        hits_first=1,
    )
    return MeasuredTestbed(testbed, _sources(device, dtype))


def machine_title(device: "torch.device") -> str:
    """A description of a device."""
    return f"this machine: {_machine(device)}{', experts in host memory' if device.type == 'cpu' else ''}"


def _machine(device: "torch.device") -> str:
    if device.type == "cuda":
        import torch

        return f"one {torch.cuda.get_device_properties(device).name}"
    return processor()


def _sources(device: "torch.device", dtype: "torch.dtype") -> dict[str, str]:
    import torch

    kind, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
    used = f" with {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else ""
    of = f"{_machine(device)}{used}, PyTorch {torch.__version__}, {datetime.date.today()}"
    return {name: f"measured: {how.format(kind=kind)}; {of}" for name, how in _HOW.items()} | {
        "devices": "one device, the engine's default",
        "host_bytes_per_s": "as link_bytes_per_s: a single link was measured",
        "interconnect_bytes_per_s": _UNUSED,
        "interconnect_latency_s": _UNUSED,
        "hits_first": "1: the engine computes resident experts while it loads the others (docs/design.md, section 5)",
    }


_SIZES = f"{SMALL_BYTES >> 20} and {RECORD_BYTES >> 20} MiB"
_SHAPES = ", ".join(f"{layers} x {top_k}" for layers, top_k in SHAPES)
_STEPS = f"decode steps of tiny models (layers x experts per token: {_SHAPES}) in the engine, with all experts resident"
_HOW = {
    "memory_bytes": "free when this was measured",
    "flops_per_s": "a large matrix product in {kind}",
    "memory_bytes_per_s": "a matrix larger than caches times a vector, in {kind}",
    "link_bytes_per_s": f"copies of {_SIZES} as the engine makes them, by least squares",
    "link_latency_s": f"copies of {_SIZES} as the engine makes them, by least squares",
    "chunk_overhead_s": f"{RECORD_BYTES >> 20} MiB in the engine's chunks against one copy",
    "layer_overhead_s": f"{_STEPS}, in {{kind}}; the overhead per step is spread over {TYPICAL_LAYERS} layers",
    "expert_overhead_s": f"{_STEPS}, in {{kind}}",
    "search_bytes_per_s": "trajectory searches in stores of two sizes, by least squares",
    "search_overhead_s": f"as layer_overhead_s: FineMoE with {NUM_MAPS} maps against on-demand, per gate with a search",
    "hand_over_s": "a dozen round trips to a thread; the engine hands longer searches over to it",
}


def _plain(value: Any) -> Any:
    """A number as the file shows it, with six digits; whole numbers unchanged."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
