"""Advice in sentences, each with its numbers; the terminal and the page begin with them."""

from collections.abc import Mapping
from typing import Any

from finemoe.advice.result import Advice
from finemoe.advice.systems import ALL, ORACLE, PREFETCHING, RESIDENT
from finemoe.advice.verdict import WITHIN
from finemoe.units import format_bytes


def sentences(advice: Advice) -> list[str]:
    """What to do, then why."""
    found = [] if advice.recommendation is None else _recommendation(advice, advice.recommendation)
    if advice.recommendation is None and advice.machine is not None:
        found = [_nothing_fits(advice, advice.machine)]
    return [*found, _cliff(advice), _knee(advice), _predictors(advice)]


def amount(advice: Advice, slots: int) -> str:
    """So many experts, in bytes where their size is known, and as a share of all."""
    count, each = advice.trace["all_experts"], advice.trace["expert_bytes"]
    share = f"{slots:,} of {count:,} experts, {slots / count:.0%}"
    return share if each is None else f"{format_bytes(slots * each)} ({share})"


def _recommendation(advice: Advice, chosen: Mapping[str, Any]) -> list[str]:
    row, best = chosen["row"], chosen["best"]
    least = f"at most {WITHIN - 1:.0%} more than the fastest that fits: {_milliseconds(best)} with {format_bytes(best['bytes'])}"
    if best["slots"] == row["slots"]:
        least = "the fastest of all that fit"
    found = [
        f"Give the experts {amount(advice, chosen['slots'])} and use {chosen['system']}: {_milliseconds(row)} per token, "
        f"{row['tokens_per_s']:.1f} tokens/s, {least}.",
        _call(row, chosen["system"]),
        _prefetching(advice, chosen),
        _limits(advice, row),
    ]
    if chosen["limited_by_room"]:
        fastest = min((one for one in advice.times if one["system"] == chosen["system"]), key=lambda one: one["tpot_s"])
        needs = format_bytes(fastest["bytes"])
        found.append(f"More memory than this machine has would pay: {_milliseconds(fastest)} per token with {needs} for experts.")
    return found


def _call(row: Mapping[str, Any], name: str) -> str:
    """How the engine is told so."""
    system = ALL[name]
    eviction = "" if system.eviction is None else f", eviction={system.eviction!r}"
    return f"In code: finemoe.offload(model, expert_memory={row['expert_memory']:.3g}, policy={system.policy!r}{eviction})."


def _prefetching(advice: Advice, chosen: Mapping[str, Any]) -> str:
    """Whether loading ahead pays at the recommended size."""
    rows = [row for row in advice.prefetching if row["slots"] == chosen["slots"]]
    if not rows:
        return "The trace cannot drive any prefetching system, so it does not show whether prefetching pays."
    row = rows[0]
    interval = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] == row["low"] else " (no interval)"
    compared = f"{row['prefetching']} takes {row['ratio']:.2f}{interval} times as long as {row['on_demand']}"
    verdict = {"pays": "Prefetching pays", "costs": "Prefetching costs time"}
    return f"{verdict.get(row['verdict'], 'This trace does not show whether prefetching pays')}: {compared}."


def _limits(advice: Advice, row: Mapping[str, Any]) -> str:
    said = {
        ORACLE: "{} with the same memory and a perfect predictor",
        RESIDENT: "{} with all experts resident",
    }
    parts = [said[name].format(f"{time_s * 1e3:.1f} ms") for name, time_s in advice.limits.items()]
    return f"Lower bounds: {', '.join(parts)}. Waiting for weights takes {row['stalled']:.0%} of the time."


def _nothing_fits(advice: Advice, machine: Mapping[str, Any]) -> str:
    rest = format_bytes(machine["resident_bytes"] + machine["kv_cache_bytes"])
    return (
        f"None of these sizes of expert memory fits: {machine['testbed']} has {format_bytes(machine['memory_bytes'])}, and the "
        f"other weights, keys and values take {rest}. The times below assume a machine with more memory."
        if advice.times
        else "The trace has no decode steps, so nothing was timed."
    )


def _cliff(advice: Advice) -> str:
    cycle = advice.cliff["cycle"]
    return (
        f"Cliff: one token activates {amount(advice, cycle)}. With that much memory LRU hits {advice.cliff['hit_rate_at']:.1%}; "
        f"with {advice.trace['top_k']} fewer, {advice.cliff['hit_rate_before']:.1%}."
    )


def _knee(advice: Advice) -> str:
    rule, slots = advice.knee["rule"], advice.knee["slots"]
    rates = {row["rule"]: row["hit_rate"] for row in advice.hit_rates if row["slots"] == slots}
    return (
        f"Knee: beyond {amount(advice, slots)} the hit rate grows slowly. At that size the best causal rule, {rule}, hits "
        f"{rates[rule]:.1%}, LRU {rates['lru']:.1%}, Belady {rates['belady']:.1%}."
    )


def _predictors(advice: Advice) -> str:
    simple = [row for row in advice.predictability if row["distance"] is None and row["predictor"] not in PREFETCHING]
    learned = [row for row in advice.predictability if row["predictor"] in PREFETCHING]
    best = max(simple, key=lambda row: row["recall"])
    text = f"Recall: {best['predictor']!r} predicts {best['recall']:.1%} of the experts used"
    if not learned:
        return f"{text}."
    leader = max(learned, key=lambda row: row["recall"])
    ahead = "in its last forecast before the gate" if leader["distance"] is None else _ahead(leader["distance"])
    return f"{text}, and {leader['predictor']}, {ahead}, {leader['recall']:.1%}."


def _ahead(distance: int) -> str:
    return f"{distance} layer{'s' * (distance != 1)} ahead"


def _milliseconds(row: Mapping[str, Any]) -> str:
    interval = f" [{row['low'] * 1e3:.1f}, {row['high'] * 1e3:.1f}]" if row["low"] == row["low"] else ""
    return f"{row['tpot_s'] * 1e3:.1f}{interval} ms"
