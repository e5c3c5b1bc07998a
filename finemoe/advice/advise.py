"""`finemoe.advise`: how much expert memory a model needs, which system, whether prefetching pays, and how far off the best is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finemoe.advice.machine import Machine, machine_facts, sized
from finemoe.advice.predictability import learned_recalls, recalls_of, simple_recalls
from finemoe.advice.result import Advice
from finemoe.advice.sample import Sample, sample_of
from finemoe.advice.sensitivity import sensitivity_rows
from finemoe.advice.sizes import asked_slots, curve_slots, timed_slots
from finemoe.advice.systems import ALL, BELADY_RULE, FINEMOE, PREFETCHING, RESIDENT, RULES
from finemoe.advice.timing import Reports, time_rows, timed_reports
from finemoe.advice.usage import concentration_rows, decoded, request_rows, reuse_rows, working_set_rows
from finemoe.advice.verdict import Recommendation, cliff, knee, limits_at, prefetch_rows, recommended
from finemoe.advice.warnings import warnings_of
from finemoe.errors import FinemoeError
from finemoe.intervals import bootstrap_ratio
from finemoe.simulation.cost import ModelSize
from finemoe.simulation.curves import HitCurve, hit_curves
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.systems import left_out
from finemoe.simulation.testbed import Testbed
from finemoe.traces import DECODE, RoutingTrace

_DISTANCES = (1, 2, 3, 6)  # layers ahead
_DISTANCE = 3  # the paper's d
_MORE_SERVED = 5  # times the rows that are timed go into the curves of hit rates, which are cheap


def _silence(text: str) -> None:
    """Says nothing."""


def advise(
    trace: RoutingTrace,
    model: str | Path | None = None,
    hardware: str | Path | Testbed | None = None,
    expert_memories: Sequence[float | int | str] = (),
    context: int = 0,
    expert_bits: float | None = None,
    prefetch_distance: int | None = None,
    served_rows: int = 4000,
    history_rows: int = 15000,
    seed: int = 0,
    say: Callable[[str], None] = _silence,
) -> Advice:
    """Advice from a trace; without `hardware` on hit rates alone.

    Args:
        model: whose sizes are meant (a published configuration's name, a folder, config.json or a hub id); None: the published
            model with the trace's layers and experts.
        hardware: a testbed's name in data/hardware, the path of a YAML file, or a Testbed.
        expert_memories: sizes to be looked at, as shares of all experts or bytes a device; by default a range of them.
        context: tokens that stand before every request. expert_bits: of a weight as it is moved. prefetch_distance: d, layers.
        served_rows, history_rows: about how many tokens are replayed in virtual time, and how many learning systems know
            beforehand; hit rates take five times as many. seed: of what is drawn.
        say: told what is being done, a line each.
    Raises:
        FinemoeError: the trace is empty, an argument is out of range, or the model's sizes are not known.
    """
    if not trace.num_rows:
        raise FinemoeError("the trace holds no tokens; there is nothing to advise on")
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
        predictability=recalls,
        machine=None if machine is None else machine_facts(machine),
        **timed,
        left_out=missing,
        notes=[*sample.notes, *notes],
        warnings=warnings_of(trace, sample.served, curves["lru"], chosen),
    )


def _sized(
    trace: RoutingTrace, model: str | Path | None, hardware: Any, context: int, expert_bits: float | None
) -> tuple[ModelSize | None, Machine | None, tuple[str, ...]]:
    """The model's sizes, and the machine; without hardware sizes need not be known, unless a model is named."""
    if context < 0:
        raise FinemoeError(f"context is {context}; it is a number of tokens, at least 0")
    if expert_bits is not None and not 0 < expert_bits <= 64:
        raise FinemoeError(f"expert_bits is {expert_bits:g}; a weight takes more than 0 bits and at most 64")
    if hardware is None and model is None:
        try:
            size, notes = sized(trace, None, expert_bits)
        except FinemoeError:
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
    count = trace.num_layers * trace.num_experts
    if not memories:
        return timed_slots(trace.num_layers, trace.num_experts, trace.top_k)
    devices = 1 if machine is None else machine.testbed.devices
    return asked_slots(memories, None if size is None else size.expert_bytes, count, devices)


def _recalls(
    sample: Sample, known: Knowledge, reports: Reports, names: Sequence[str], distance: int, seed: int
) -> list[dict[str, Any]]:
    """Of simple predictors, of FineMoE at several distances, and of the other systems at one."""
    distances = tuple(ahead for ahead in _DISTANCES if ahead < sample.served.num_layers)
    others = [name for name in names if name != FINEMOE]
    replayed = recalls_of(reports, distance, others)
    to_ask = {name: PREFETCHING[name] for name in names if name == FINEMOE or not reports}
    return simple_recalls(sample, seed) + learned_recalls(sample, known, to_ask, distances, distance, seed) + replayed


def _curves(trace: RoutingTrace, served: RoutingTrace, slots: Sequence[int]) -> dict[str, HitCurve]:
    return hit_curves(served, RULES, curve_slots(trace.num_layers, trace.num_experts, trace.top_k, slots))


def _trace_facts(trace: RoutingTrace, size: ModelSize | None) -> dict[str, Any]:
    count, is_decode = trace.num_layers * trace.num_experts, trace.phase == DECODE
    return {
        "model": size.name if size is not None else trace.model,
        "requests": trace.num_requests,
        "tokens": trace.num_rows,
        "decode_steps": int(is_decode.sum()),
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
        "has_weights": trace.has_weights,
        "all_experts": count,
        "expert_bytes": None if size is None else size.expert_bytes,
        "all_experts_bytes": None if size is None else size.expert_bytes * count,
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
    knees = {curve.rule: knee(curve) for curve in (curves["lru"], best)}
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
    """Every system at every size; none where no token is decoded."""
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
    """What was timed, by the names of `Advice`, and what is recommended."""
    rows = time_rows(reports, machine, seed)
    found: dict[str, Any] = {"times": rows, "prefetching": prefetch_rows(rows, reports, seed)}
    chosen = recommended(rows)
    if chosen is not None:
        say("what changes it")
        found |= {
            "recommendation": chosen.to_dict(),
            "limits": limits_at(rows, chosen.slots),
            "sensitivity": sensitivity_rows(served, known, machine, chosen, distance, seed),
        }
    return found, chosen
