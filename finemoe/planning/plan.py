"""`finemoe.plan`: which format, expert memory, context and policy to choose for a model on a machine, and how fast it will be."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finemoe.cache.capacity import byte_count
from finemoe.errors import FinemoeError
from finemoe.models.published import config_source
from finemoe.packing.formats import require_format
from finemoe.planning.choices import DISK_BYTES_PER_S, SYSTEMS, Choice, choices_of, largest_context, room_bytes
from finemoe.planning.loaded import PACKED_AT_LOAD, LoadedModel, loaded_models
from finemoe.planning.place import Place, place_of
from finemoe.planning.prediction import Prepared
from finemoe.planning.routing import assumed_routings, recorded_routing, shipped_trace
from finemoe.simulation.cost import ModelSize
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace
from finemoe.units import format_bytes

_SIMPLER_WITHIN = 1.02  # a prefetching policy must gain more than this over a simpler one
_EXACT_WITHIN = 1.25  # a lossy format must gain more than this over an exact one
_NUM_CHOICES = 3


@dataclass(frozen=True)
class Misfit:
    """A format that does not fit.

    Attributes:
        expert_format: its name. needed_bytes: on a device, with one expert in memory. missing_bytes: how much too much that is.
        largest_context: the largest context with which it fits; None if it does not fit without any.
    """

    expert_format: str
    needed_bytes: int
    missing_bytes: int
    largest_context: int | None


@dataclass(frozen=True)
class Plan:
    """What to choose.

    Attributes:
        model, machine: names. memory_bytes: of a device. host_memory_bytes: for experts; None if unknown.
        context: tokens whose keys and values have room. basis: what the predictions replay.
        other_bytes, kv_bytes, reserve_bytes: of a device's memory, what is not for experts.
        choices: the best first; the others are the next best. misfits: formats that do not fit.
        notes: what to know about the numbers.
    """

    model: str
    machine: str
    memory_bytes: int
    host_memory_bytes: int | None
    context: int
    basis: str
    other_bytes: int
    kv_bytes: int
    reserve_bytes: int
    choices: tuple[Choice, ...]
    misfits: tuple[Misfit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Choice:
        """The recommended choice."""
        return self.choices[0]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain types, ready for JSON."""
        return asdict(self)


def plan(
    model: str,
    memory: int | str | None = None,
    hardware: "str | Path | Testbed | None" = None,
    *,
    host_memory: int | str | None = None,
    context: int = 4096,
    trace: RoutingTrace | None = None,
    link: str | None = None,
    gguf: str | None = None,
    formats: Sequence[str] = PACKED_AT_LOAD,
    source: str | None = None,
    seed: int = 0,
) -> Plan:
    """Plan from a model's configuration; no weights are read.

    Args:
        model: name of a miniature or of a published model, a folder, a config.json, a GGUF file or a hub id.
        memory: memory of each device, in bytes or as "8GiB"; None: all of the machine's.
        hardware: name of a testbed in data/hardware, a YAML file, or a Testbed; None or "here": this machine.
        host_memory: host memory for experts; None: this machine's, and for another machine enough for all experts.
        context: tokens whose keys and values must fit.
        trace: recorded routing of the model; None replays that of a miniature, if the project has it, or synthetic routing that
            is fitted to real models, which gives a range.
        link: the link's rate instead of the machine's, such as "24GB/s", or "paced:24GB/s" on a CPU that imitates one.
        gguf: count experts as in a GGUF file of this mix. formats: values of --expert-format to consider for unpacked models.
        source: what the configuration is read from; None: what `model` names. seed: seed of the synthetic routing.
    Returns:
        The plan: the best choice, the two next best, and what does not fit.
    Raises:
        FinemoeError: there is no such model or machine, or no format fits.
    """
    if context < 1:
        raise FinemoeError(f"context is {context}; it is a number of tokens, at least 1")
    for name in formats:
        require_format(name)
    host_bytes = None if host_memory is None else byte_count(host_memory, "host_memory")
    place = place_of(hardware, link, host_bytes, None if memory is None else byte_count(memory, "memory"))
    models = loaded_models(model, source or config_source(model), [None, *formats], gguf, not place.is_cpu)
    fitting = [one for one in models if room_bytes(one, place, context) >= one.smallest_bytes]
    misfits = tuple(_misfit(one, place, context) for one in models if one not in fitting)
    if not fitting:
        raise FinemoeError(_nothing_fits(models[0].name, place, misfits, context))
    trace = shipped_trace(model) if trace is None else trace
    prepared = prepare(models[0], trace, seed)
    ordered = ranked([choice for one in fitting for choice in choices_of(one, place, context, prepared)])
    first = fitting[0]
    return Plan(
        model=model,
        machine=place.testbed.title,
        memory_bytes=int(place.testbed.memory_bytes),
        host_memory_bytes=place.host_bytes,
        context=context,
        basis=basis_of(trace, prepared),
        other_bytes=first.other_bytes,
        kv_bytes=first.kv_bytes * context,
        reserve_bytes=place.reserve_bytes(place.testbed.memory_bytes),
        choices=tuple(ordered[:_NUM_CHOICES]),
        misfits=misfits,
        notes=_notes(first, place, context, ordered[0]),
    )


def prepare(model: LoadedModel, trace: RoutingTrace | None, seed: int) -> list[Prepared]:
    """The routing to replay: the trace's, or assumed ones.

    Raises:
        FinemoeError: the trace is of other sizes than the model.
    """
    size = model.size
    if trace is None:
        return [Prepared.of(one) for one in assumed_routings(size.num_layers, size.num_experts, size.top_k, seed)]
    found, expected = _shape(trace), _shape(size)
    if found != expected:
        raise FinemoeError(f"the trace has {found}, {model.name} {expected}; give a trace of this model")
    return [Prepared.of(recorded_routing(trace, trace.model or "the trace", seed))]


def _shape(one: RoutingTrace | ModelSize) -> str:
    return f"{one.num_layers} layers x {one.num_experts} experts / {one.top_k}"


def basis_of(trace: RoutingTrace | None, prepared: Sequence[Prepared]) -> str:
    """What the predictions replay, in words."""
    served = prepared[0].routing.served
    if trace is not None:
        known = prepared[0].routing.history
        others = "" if known is None else f", after {known.num_requests} others"
        return f"recorded routing of this model: {served.num_requests} requests, {served.num_rows} tokens{others}"
    names = " and ".join(one.routing.name.removeprefix("like ") for one in prepared)
    return f"assumed routing at this model's sizes, fitted to hit rates of {names}"


def ranked(choices: Sequence[Choice]) -> list[Choice]:
    """The fastest first; but a choice that is not lossy before lossy ones that gain less than a quarter, and a simpler policy
    before one that gains less than two percent. A choice that is not lossy is always among the first three. The next ones differ
    in format or in speed from those before them, as long as there are such."""
    complexity = {system.policy: place for place, system in enumerate(SYSTEMS.values())}
    ordered = sorted(choices, key=lambda one: one.tpot_s[1])
    exact = [one for one in ordered if not one.is_lossy]
    pool = exact if exact and exact[0].tpot_s[1] <= _EXACT_WITHIN * ordered[0].tpot_s[1] else ordered
    near = [one for one in pool if one.tpot_s[1] <= _SIMPLER_WITHIN * pool[0].tpot_s[1]]
    first = min(near, key=lambda one: (-one.host_bytes, complexity[one.policy], one.eviction is not None, one.tpot_s[1]))
    rest = _differing(first, [one for one in ordered if one is not first])
    if not first.is_lossy or not exact:
        return [first, *rest]
    others = [one for one in rest if one is not exact[0]]
    return sorted([first, *others[:1], exact[0]], key=lambda one: (one is not first, one.tpot_s[1])) + others[1:]


def _differing(first: Choice, others: Sequence[Choice]) -> list[Choice]:
    """The others, but first those that differ in format or in speed from all before them."""
    kept, alike = [first], list[Choice]()
    for one in others:
        is_alike = any(one.expert_format == before.expert_format and _is_as_fast(one, before) for before in kept)
        (alike if is_alike else kept).append(one)
    return kept[1:] + alike


def _is_as_fast(one: Choice, other: Choice) -> bool:
    fast, slow = sorted((one.tpot_s[1], other.tpot_s[1]))
    return slow <= _SIMPLER_WITHIN * fast


def _misfit(model: LoadedModel, place: Place, context: int) -> Misfit:
    needed = model.smallest_bytes + model.other_bytes + model.kv_bytes * context
    missing = model.smallest_bytes - room_bytes(model, place, context)
    return Misfit(model.expert_format, needed, missing, largest_context(model, place) or None)


def _nothing_fits(name: str, place: Place, misfits: Sequence[Misfit], context: int) -> str:
    least = min(misfits, key=lambda one: one.missing_bytes)
    text = (
        f"{name} does not fit: with one expert in memory and a context of {context:,} tokens it needs "
        f"{format_bytes(least.needed_bytes)} and a reserve of {format_bytes(place.reserve_bytes(place.testbed.memory_bytes))}; "
        f"{place.testbed.title} has {format_bytes(place.testbed.memory_bytes)}, {format_bytes(least.missing_bytes)} too little"
    )
    return f"{text}; the largest context that fits is {least.largest_context:,} tokens" if least.largest_context else text


def _notes(model: LoadedModel, place: Place, context: int, best: Choice) -> tuple[str, ...]:
    found = []
    if model.positions is not None and context > model.positions:
        found.append(f"keys and values are counted for {context:,} tokens, but this model has positions for {model.positions:,}")
    if place.host_bytes is None:
        found.append(f"host memory is not known; all experts need {format_bytes(best.host_bytes)} of it (--host-memory)")
    if best.disk_bytes:
        found.append(
            f"{format_bytes(best.disk_bytes)} of the experts are on disk, which is assumed to read "
            f"{DISK_BYTES_PER_S / 1e9:g} GB/s"
        )
    if best.is_lossy:
        what = "packing experts at load" if model.mix is None else f"a GGUF file of mix {model.mix}"
        found.append(f"{what} is lossy: the model then generates the tokens of the packed model")
    return tuple(found)
