"""`finemoe.advise`: how much expert memory a model needs, which system to use, whether prefetching pays, and the upper bounds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.advice.machine import Machine, machine_facts, sized
from finemoe.advice.predictability import learned_recalls, of_decoding, recalls_of, simple_recalls
from finemoe.advice.result import Advice
from finemoe.advice.sample import Sample, sample_of
from finemoe.advice.sensitivity import sensitivity_rows
from finemoe.advice.sizes import asked_slots, curve_slots, timed_slots
from finemoe.advice.systems import ALL, BELADY_RULE, FINEMOE, PREFETCHING, RESIDENT, RULES
from finemoe.advice.timing import Reports, time_rows, timed_reports
from finemoe.advice.usage import concentration_rows, decode_steps, decoded, request_rows, reuse_rows, working_set_rows
from finemoe.advice.verdict import Recommendation, cliff, knee, limits_at, prefetch_rows, recommended
from finemoe.advice.warnings import warnings_of
from finemoe.cache.capacity import byte_count
from finemoe.errors import FinemoeError
from finemoe.intervals import bootstrap_ratio
from finemoe.plain import whole_number
from finemoe.simulation.cost import ModelSize
from finemoe.simulation.curves import HitCurve, hit_curves
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.systems import left_out
from finemoe.simulation.testbed import Testbed
from finemoe.traces import DECODE, RoutingTrace
from finemoe.units import format_bytes

_DISTANCES = (1, 2, 3, 6)  # layers ahead
_DISTANCE = 3  # the paper's d
_MORE_SERVED = 5  # hit-rate curves, which are cheap, use this many times the rows that are timed


def _silence(text: str) -> None:
    """Print nothing."""


def advise(
    trace: RoutingTrace,
    model: str | Path | ModelSize | None = None,
    hardware: str | Path | Testbed | None = None,
    expert_memories: Sequence[float | int | str] = (),
    context: int = 0,
    expert_bits: float | None = None,
    host_memory: int | str | None = None,
    prefetch_distance: int | None = None,
    served_rows: int = 4000,
    history_rows: int = 15000,
    seed: int = 0,
    say: Callable[[str], None] = _silence,
) -> Advice:
    """Advice from a trace; without `hardware`, only about hit rates.

    Args:
        trace: recorded routing.
        model: the model that supplies sizes: name of a published configuration, a folder, a config.json, a hub id, or a
            `ModelSize`. None: the published model with the trace's layers and experts.
        hardware: name of a testbed in data/hardware, path of a YAML file, or a Testbed.
        expert_memories: sizes to consider, as shares of all experts or bytes per device; by default a range of shares.
        context: number of tokens that precede every request. expert_bits: bits of an expert's weight when it is transferred.
        host_memory: host memory for experts, in bytes or as "32GiB"; if they exceed it, a warning says by how much.
        prefetch_distance: d, layers.
        served_rows, history_rows: approximate number of tokens to replay in virtual time, and to train learning systems on
            beforehand; hit rates use five times as many served tokens.
        seed: seed of all random draws. say: called with one line of progress at a time.
    Returns:
        The advice: tables, a recommendation, notes and warnings.
    Raises:
        FinemoeError: the trace is empty, an argument is out of range, or the model's sizes are unknown.
    """
    _require_sensible(trace, expert_memories, prefetch_distance, served_rows, history_rows, seed)
    distance = min(_DISTANCE, trace.num_layers) if prefetch_distance is None else prefetch_distance
    size, machine, notes = _sized(trace, model, hardware, context, expert_bits)
    slots = _slots(trace, expert_memories, size, machine)
    sample = sample_of(trace, served_rows, history_rows, seed)
    known, missing = sample.knowledge(distance, seed), left_out(sample.served, ALL, distance)
    say("working sets and hit rates")
    curves = _curves(trace, sample_of(trace, _MORE_SERVED * served_rows, history_rows, seed).served, slots)
    reports = {} if machine is None else _reports(sample.served, known, machine, slots, distance, seed, say)
    say("predictors")
    recalls = _recalls(sample, known, reports, [name for name in PREFETCHING if name not in missing], distance, seed)
    timed, chosen = ({}, None) if machine is None else _timed(sample.served, known, machine, reports, distance, seed, say)
    return Advice(
        trace=_trace_facts(trace, size),
        **_usage(trace),
        **_hit_rates(trace, curves, seed),
        slots=list(slots),
        predictability=recalls,
        machine=None if machine is None else machine_facts(machine),
        **timed,
        left_out=missing,
        notes=[*sample.notes, *notes, *_notes(trace, distance)],
        warnings=warnings_of(trace, sample.served, curves["lru"], chosen) + _about_host(size, host_memory),
    )


def _about_host(size: ModelSize | None, host_memory: int | str | None) -> list[str]:
    """A warning if host memory does not hold all experts."""
    if host_memory is None or size is None:
        return []
    beyond = size.all_experts_bytes - byte_count(host_memory, "host_memory")
    if beyond <= 0:
        return []
    told = f"all experts take {format_bytes(size.all_experts_bytes)}, of which host memory does not hold {format_bytes(beyond)}"
    return [f"{told}: these are read from disk, which is slower than the link and not part of the times"]


def _require_sensible(
    trace: RoutingTrace, memories: Any, prefetch_distance: int | None, served_rows: int, history_rows: int, seed: int
) -> None:
    if not trace.num_rows:
        raise FinemoeError("the trace has no tokens; there is nothing to advise on")
    for name, value, least in (("served_rows", served_rows, 1), ("history_rows", history_rows, 1), ("seed", seed, 0)):
        whole_number(name, value, least)
    if isinstance(memories, str):
        raise FinemoeError(f"expert_memories is {memories!r}; give a list of sizes, such as [{memories!r}]")
    if prefetch_distance is not None and not 1 <= prefetch_distance <= trace.num_layers:
        raise FinemoeError(f"prefetch_distance is {prefetch_distance}; the trace has {trace.num_layers} layers")


def _notes(trace: RoutingTrace, distance: int) -> list[str]:
    """Facts about the trace that matter for reading the numbers."""
    found, steps = [], decode_steps(trace)
    if not steps:
        found.append("the trace has only prompts: working set, reuse and recall are of prompt tokens")
    elif (tokens := _tokens_per_step(trace)) > 1:
        found.append(f"a decode step yields {tokens:.3g} tokens on average, as recorded: times per token are times per step")
    if distance >= trace.num_layers:
        found.append(f"no layer is {distance} layers ahead of another: systems that predict at that distance predict nothing")
    return found


def _tokens_per_step(trace: RoutingTrace) -> float:
    return float((trace.phase == DECODE).sum()) / max(1, decode_steps(trace))


def _sized(
    trace: RoutingTrace, model: str | Path | ModelSize | None, hardware: Any, context: int, expert_bits: float | None
) -> tuple[ModelSize | None, Machine | None, tuple[str, ...]]:
    """The model's sizes and the machine. Without hardware, the sizes may stay unknown unless a model is named."""
    if context < 0:
        raise FinemoeError(f"context is {context}; it is a number of tokens, at least 0")
    if context and hardware is None:
        raise FinemoeError("context takes time and memory on a machine; name the machine with hardware")
    if hardware is None and model is None and expert_bits is None:
        try:
            size, notes = sized(trace, None)
        except FinemoeError:  # hit rates can be computed without sizes
            return None, None, ()
        return size, None, notes
    size, notes = sized(trace, model, expert_bits)
    if hardware is None:
        return size, None, notes
    longest = context + int(np.diff(trace.offsets).max())
    return size, Machine(size, Testbed.load(hardware), context, longest), notes


def _slots(
    trace: RoutingTrace, memories: Sequence[float | int | str], size: ModelSize | None, machine: Machine | None
) -> list[int]:
    count, devices = trace.num_layers * trace.num_experts, 1 if machine is None else machine.testbed.devices
    if not memories:
        sizes = timed_slots(trace.num_layers, trace.num_experts, trace.top_k)
        return sizes if machine is None else sorted({machine.whole(slots) for slots in sizes})
    each = _expert_bytes(trace, size)
    if each is None and not all(isinstance(memory, float) for memory in memories):
        raise FinemoeError("expert memory in bytes needs the size of an expert: name the model, or give a share such as 0.25")
    return asked_slots(memories, each, count, devices)


def _expert_bytes(trace: RoutingTrace, size: ModelSize | None) -> int | None:
    """Bytes of one expert, from the model or the trace; None if unknown."""
    return max(trace.expert_bytes, default=None) if size is None else size.expert_bytes


def _recalls(
    sample: Sample, known: Knowledge, reports: Reports, names: Sequence[str], distance: int, seed: int
) -> list[dict[str, Any]]:
    """Recall on decoded tokens: simple predictors, FineMoE at several distances, and the other systems at one distance."""
    distances = tuple(ahead for ahead in _DISTANCES if ahead < sample.served.num_layers)
    tokens = of_decoding(sample)
    is_replayed = bool(reports) and tokens.served.num_rows == sample.served.num_rows
    replayed = recalls_of(reports, distance, [name for name in names if name != FINEMOE]) if is_replayed else []
    to_ask = {name: PREFETCHING[name] for name in names if name == FINEMOE or not is_replayed}
    return simple_recalls(sample, seed) + learned_recalls(tokens, known, to_ask, distances, distance, seed) + replayed


def _curves(trace: RoutingTrace, served: RoutingTrace, slots: Sequence[int]) -> dict[str, HitCurve]:
    sizes = curve_slots(trace.num_layers, trace.num_experts, trace.top_k, slots)
    try:
        return hit_curves(served, RULES, sizes)
    except MemoryError as error:
        shape = f"{trace.num_layers} layers x {trace.num_experts} experts"
        raise FinemoeError(f"{shape} need more memory than there is; is the number of experts correct?") from error


def _trace_facts(trace: RoutingTrace, size: ModelSize | None) -> dict[str, Any]:
    count, each = trace.num_layers * trace.num_experts, _expert_bytes(trace, size)
    return {
        "model": size.name if size is not None else trace.model,
        "requests": trace.num_requests,
        "tokens": trace.num_rows,
        "decode_steps": decode_steps(trace),
        "tokens_per_step": _tokens_per_step(trace),
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
        "has_weights": trace.has_weights,
        "all_experts": count,
        "expert_bytes": each,
        "all_experts_bytes": None if each is None else each * count,
    }


def _usage(trace: RoutingTrace) -> dict[str, Any]:
    tokens = decoded(trace)
    return {
        "working_set": working_set_rows(tokens),
        "request": request_rows(tokens),
        "reuse": reuse_rows(tokens),
        "concentration": concentration_rows(tokens),
    }


def _hit_rates(trace: RoutingTrace, curves: dict[str, HitCurve], seed: int) -> dict[str, Any]:
    causal = [curve for name, curve in curves.items() if name != BELADY_RULE]
    best = max(causal, key=lambda curve: float(curve.hit_rates.mean()))
    evenly = curve_slots(trace.num_layers, trace.num_experts, trace.top_k, ())
    knees = {curve.rule: knee(curve, evenly) for curve in (curves["lru"], best)}
    return {
        "hit_rates": [row for curve in curves.values() for row in _curve_rows(curve, trace, seed)],
        "cliff": cliff(curves["lru"], trace.num_layers, trace.top_k),
        "knee": {"rule": best.rule, "slots": knees[best.rule], "lru_slots": knees["lru"]},
    }


def _curve_rows(curve: HitCurve, trace: RoutingTrace, seed: int) -> list[dict[str, Any]]:
    hits, accesses = curve.hits[curve.accesses > 0], curve.accesses[curve.accesses > 0]
    interval = bootstrap_ratio(hits, np.repeat(accesses[:, None], len(curve.slots), axis=1), seed=seed)
    count = trace.num_layers * trace.num_experts
    found = zip(curve.slots.tolist(), *(values.tolist() for values in interval), strict=True)
    return [
        {"rule": curve.rule, "slots": slots, "expert_memory": slots / count, "hit_rate": rate, "low": low, "high": high}
        for slots, rate, low, high in found
    ]


def _reports(
    served: RoutingTrace,
    known: Knowledge,
    machine: Machine,
    slots: Sequence[int],
    distance: int,
    seed: int,
    say: Callable[[str], None],
) -> Reports:
    """Replay every system at every size; returns nothing if no token is decoded."""
    reports: Reports = {}
    for name, system in ALL.items() if (served.phase == DECODE).any() else ():
        say(name)
        sizes = [served.num_layers * served.num_experts] if name == RESIDENT else slots
        reports |= timed_reports(served, known, machine, {name: system}, sizes, distance, seed)
    return reports


def _timed(
    served: RoutingTrace,
    known: Knowledge,
    machine: Machine,
    reports: Reports,
    distance: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Recommendation | None]:
    """The timed results, by the names of `Advice`, and the recommendation."""
    rows = time_rows(reports, machine, _tokens_per_step(served), seed)
    found: dict[str, Any] = {"times": rows, "prefetching": prefetch_rows(rows, reports, seed)}
    chosen = recommended(rows)
    if chosen is not None:
        say("sensitivity of the recommendation")
        found |= {
            "recommendation": chosen.to_dict(),
            "limits": limits_at(rows, chosen.slots),
            "sensitivity": sensitivity_rows(served, known, machine, chosen, distance, seed),
        }
    return found, chosen
