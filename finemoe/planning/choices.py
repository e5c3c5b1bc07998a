"""The ways to run one model in one format on a machine: every system on the least memory that is as fast as all of it."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finemoe.models.published import HUB_IDS
from finemoe.planning.loaded import LoadedModel
from finemoe.planning.place import Place
from finemoe.planning.prediction import Curve, Prepared, curves, prompt_s
from finemoe.simulation.cost import CostModel
from finemoe.simulation.systems import System
from finemoe.simulation.testbed import Testbed

SYSTEMS = {
    "on-demand": System("on-demand", "lru"),
    "on-demand, next-use eviction": System("on-demand", "next-use"),
    "finemoe-plus": System("finemoe-plus"),
}
DISK_BYTES_PER_S = 2e9  # assumed: what a solid-state drive sustains
MISS_ERROR = 0.2  # of assumed routing, relative, for a model it is not fitted to (data/reference/assumed_routing.csv)
_ENOUGH_WITHIN = 1.02  # of the least time: less memory with this is enough
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Choice:
    """One way to run a model.

    Attributes:
        expert_format: how experts are stored. is_lossy: whether that changes the published weights.
        policy, eviction: as `finemoe run` takes them; eviction is None for the policy's own.
        slots: experts in memory, of all_experts. expert_memory_bytes: on each device. device_bytes: with the other weights, and
            the keys and values of the context.
        host_bytes: all experts in host memory. disk_bytes: of them, on disk.
        tokens_per_s, tpot_s, hit_rate: lowest and highest prediction. ttft_s: estimate for a prompt of half the context.
        command: what to type.
    """

    expert_format: str
    is_lossy: bool
    policy: str
    eviction: str | None
    slots: int
    all_experts: int
    expert_memory_bytes: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    tokens_per_s: tuple[float, float]
    tpot_s: tuple[float, float]
    hit_rate: tuple[float, float]
    ttft_s: float
    command: str


def room_bytes(model: LoadedModel, place: Place, context: int) -> int:
    """Memory for experts on each device, negative if the rest alone does not fit."""
    device_bytes = place.testbed.memory_bytes
    rest = place.reserve_bytes(device_bytes) + model.other_bytes + model.kv_bytes * context
    if place.shares_memory:  # the host's copy of all experts is in the same memory
        rest += model.all_experts_bytes - disk_bytes(model, place)
    return int(device_bytes) - rest


def disk_bytes(model: LoadedModel, place: Place) -> int:
    """Experts that host memory does not hold."""
    return 0 if place.host_bytes is None else max(0, model.all_experts_bytes - place.host_bytes)


def largest_context(model: LoadedModel, place: Place) -> int:
    """Tokens whose keys and values fit in addition to one expert; 0 if none do, or if the model keeps nothing for a token."""
    left = room_bytes(model, place, 0) - model.smallest_bytes
    return left // model.kv_bytes if left > 0 and model.kv_bytes else 0


def choices_of(model: LoadedModel, place: Place, context: int, prepared: Sequence[Prepared]) -> list[Choice]:
    """Every system with one format, on as much memory as it can use."""
    slots = min(model.num_experts, model.slots_in(room_bytes(model, place, context)) * place.testbed.devices)
    found = [predicted(model, place, one, context) for one in prepared]
    is_assumed = len(prepared) > 1
    return [_choice(model, place, name, slots, context, [one[name] for one in found], is_assumed) for name in SYSTEMS]


def predicted(model: LoadedModel, place: Place, prepared: Prepared, context: int) -> dict[str, Curve]:
    """Curves of every system; tokens are predicted at half the context, the mean while it fills."""
    from finemoe.planning.calibration import calibrated, is_small, remembered

    testbed, size = with_disk(model, place), model.size
    if not (place.is_here and place.is_cpu and is_small(model)):
        return curves(prepared, _unpacking(testbed, model), size, SYSTEMS, context // 2)
    measured = remembered(model, tuple(system.policy for system in SYSTEMS.values()), place.link)
    found: dict[str, Curve] = {}
    for name, system in SYSTEMS.items():
        changed, size, wake_s = calibrated(testbed, model, measured, system.policy)
        found |= curves(prepared, changed, size, {name: system}, context // 2, wake_s)
    return found


def with_disk(model: LoadedModel, place: Place) -> Testbed:
    """The testbed with the mean rate of its link if some experts must be read from disk first."""
    testbed, share = place.testbed, disk_bytes(model, place) / model.all_experts_bytes
    if not share:
        return testbed
    link = testbed.load_bytes_per_s
    rate = 1 / ((1 - share) / link + share / min(link, DISK_BYTES_PER_S))
    return replace(testbed, link_bytes_per_s=rate, host_bytes_per_s=rate * testbed.devices)


def command_of(model: LoadedModel, place: Place, system: System, eviction: str | None, slots: int) -> str:
    """The command line that runs a choice, with `slots` experts on every device."""
    parts = [f"finemoe run -m {shlex.quote(_to_run(model))}", f"--expert-memory {as_option(model.expert_memory_bytes(slots))}"]
    parts += [f"--expert-format {model.packed_at_load}"] if model.packed_at_load else []
    parts += [f"--host-memory {as_option(place.host_bytes, math.floor)}"] if place.host_bytes and disk_bytes(model, place) else []
    parts += [f"--policy {system.policy}"] + ([f"--eviction {eviction}"] if eviction else [])
    parts += [f"--devices {place.testbed.devices}"] if place.testbed.devices > 1 else []
    parts += [f"--link {place.link}"] if place.link else []
    return " ".join([*parts, '-p "Hello"'])


def _to_run(model: LoadedModel) -> str:
    """What `finemoe run` loads: a hub id instead of the name of an included configuration, and the folder of a configuration."""
    if model.mix is not None:
        return "FILE.gguf"
    path = Path(model.name)
    if path.suffix == ".json" and path.is_file():
        return str(path.parent)
    return next((hub_id for hub_id, name in HUB_IDS.items() if name == model.name), model.name)


def as_option(num_bytes: int, rounding: Callable[[float], int] = math.ceil) -> str:
    """A size as options take it, rounded up unless another rounding is given."""
    unit, name = (_GIB, "GiB") if num_bytes >= _GIB // 10 else (_MIB, "MiB")
    return f"{rounding(num_bytes / unit * 100) / 100:.2f}{name}"


def _unpacking(testbed: Testbed, model: LoadedModel) -> Testbed:
    """Unpacking reads a packed expert and writes it unpacked, before it is read for computing."""
    if not model.room_bytes:
        return testbed
    moved_s = (model.slot_bytes + model.room_bytes) / testbed.memory_bytes_per_s
    return replace(testbed, expert_overhead_s=testbed.expert_overhead_s + moved_s)


def _choice(
    model: LoadedModel, place: Place, name: str, most: int, context: int, found: Sequence[Curve], is_assumed: bool
) -> Choice:
    """The least memory that is as fast as all of it, to within two percent."""
    system, devices = SYSTEMS[name], place.testbed.devices
    slots = _enough(found, most)
    each = -(-slots // devices)
    times, hits = zip(*(curve.at(slots) for curve in found), strict=True)
    resident_s = [curve.at(model.num_experts)[0] for curve in found]
    error = MISS_ERROR if is_assumed else 0.0
    fast_s = min(here + (time - here) * (1 - error) for time, here in zip(times, resident_s, strict=True))
    slow_s = max(here + (time - here) * (1 + error) for time, here in zip(times, resident_s, strict=True))
    own = None if system.eviction in (None, "lru") else system.eviction
    return Choice(
        expert_format=model.expert_format,
        is_lossy=model.is_lossy,
        policy=system.policy,
        eviction=own,
        slots=slots,
        all_experts=model.num_experts,
        expert_memory_bytes=model.expert_memory_bytes(each),
        device_bytes=model.expert_memory_bytes(each) + model.other_bytes + model.kv_bytes * context,
        host_bytes=model.all_experts_bytes,
        disk_bytes=disk_bytes(model, place),
        tokens_per_s=(1 / slow_s, 1 / fast_s),
        tpot_s=(fast_s, slow_s),
        hit_rate=(max(0.0, 1 - (1 - min(hits)) * (1 + error)), 1 - (1 - max(hits)) * (1 - error)),
        ttft_s=prompt_s(CostModel(model.size, with_disk(model, place)), max(1, context // 2), slots / model.num_experts),
        command=command_of(model, place, system, own, each),
    )


def _enough(found: Sequence[Curve], most: int) -> int:
    """The least of the sizes considered, at most `most`, that is as fast as `most` to within two percent."""
    best_s = max(curve.at(most)[0] for curve in found)
    sizes = [int(one) for one in found[0].slots if one < most] + [most]
    return next(one for one in sizes if max(curve.at(one)[0] for curve in found) <= _ENOUGH_WITHIN * best_s)
