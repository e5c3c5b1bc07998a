"""The advice in sentences with numbers; the terminal output and the page begin with them."""

from collections.abc import Mapping, Sequence
from typing import Any

from finemoe.advice.predictability import HISTORY, LAST, PROMPT, SO_FAR
from finemoe.advice.result import Advice
from finemoe.advice.systems import ALL, LIMITS, ORACLE, PREFETCHING, RESIDENT
from finemoe.advice.verdict import WITHIN
from finemoe.cache.capacity import slots_per_device
from finemoe.units import format_bytes


def sentences(advice: Advice) -> list[str]:
    """What to do, followed by the reasons."""
    found = [] if advice.recommendation is None else _recommendation(advice, advice.recommendation)
    if advice.recommendation is None and advice.machine is not None:
        found = [_nothing_fits(advice, advice.machine)]
    return [*found, _cliff(advice), _knee(advice), _predictors(advice)]


def amount(advice: Advice, slots: int) -> str:
    """A number of experts, in bytes if their size is known, and as a share of all experts."""
    count, each = advice.trace["all_experts"], advice.trace["expert_bytes"]
    share = f"{slots:,} of {count:,} experts, {slots / count:.0%}"
    return share if each is None else f"{format_bytes(slots * each)} ({share})"


def _recommendation(advice: Advice, chosen: Mapping[str, Any]) -> list[str]:
    row, best = chosen["row"], chosen["best"]
    least = f"at most {WITHIN - 1:.0%} more than the fastest that fits, {best['system']}: {_milliseconds(best)} with "
    least += format_bytes(best["bytes"])
    if (best["system"], best["slots"]) == (row["system"], row["slots"]):
        least = "the fastest of all that fit"
    found = [
        f"Give the experts {amount(advice, chosen['slots'])} and use {chosen['system']}: "
        f"{_milliseconds(row)} per {_unit(advice)}, "
        f"{row['tokens_per_s']:.1f} tokens/s, {least}.",
        _call(advice, row, chosen["system"]),
        _prefetching(advice, chosen),
        _limits(advice, row),
    ]
    if chosen["limited_by_room"]:
        larger = [one for one in advice.times if not one["fits"] and one["system"] not in LIMITS]
        fastest = min(larger, key=lambda one: one["tpot_s"])
        found.append(
            f"More memory than this machine has would pay: {fastest['system']} takes {_milliseconds(fastest)} with "
            f"{format_bytes(fastest['bytes'])} for experts."
        )
    return found


def _unit(advice: Advice) -> str:
    return "token" if advice.trace["tokens_per_step"] == 1 else f"step of {advice.trace['tokens_per_step']:.3g} tokens"


def _call(advice: Advice, row: Mapping[str, Any], name: str) -> str:
    """The call that applies the recommendation; unlike `offload`, it also loads models that do not fit in memory."""
    system, count = ALL[name], advice.trace["all_experts"]
    devices = 1 if advice.machine is None else advice.machine["devices"]
    texts = (f"{row['expert_memory']:.{digits}g}" for digits in range(3, 18))
    share = next(text for text in texts if slots_per_device(float(text), None, count, devices) * devices >= row["slots"])
    eviction = "" if system.eviction is None else f", eviction={system.eviction!r}"
    return f"In code: finemoe.load(model, expert_memory={float(share)!r}, policy={system.policy!r}{eviction})."


def _prefetching(advice: Advice, chosen: Mapping[str, Any]) -> str:
    """Whether prefetching pays at the recommended size."""
    rows = [row for row in advice.prefetching if row["slots"] == chosen["slots"]]
    if not rows:
        return "The trace cannot drive any prefetching system, so it does not show whether prefetching pays."
    row = rows[0]
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] == row["low"] else " (no interval)"
    compared = f"{row['prefetching']} takes {row['ratio']:.3f}{interval} times as long as {row['on_demand']}"
    verdict = {
        "pays": "Prefetching pays",
        "costs": "Prefetching costs time",
        "makes no difference": "Prefetching makes a difference of less than 2 %",
    }
    return f"{verdict.get(row['verdict'], 'This trace does not show whether prefetching pays')}: {compared}."


def _limits(advice: Advice, row: Mapping[str, Any]) -> str:
    said = {
        ORACLE: "{} with the same memory and a perfect predictor",
        RESIDENT: "{} with all experts resident",
    }
    parts = [said[name].format(f"{time_s * 1e3:.1f} ms") for name, time_s in advice.limits.items()]
    return f"For comparison: {', '.join(parts)}. Waiting for weights takes {row['stalled']:.0%} of the time."


def _nothing_fits(advice: Advice, machine: Mapping[str, Any]) -> str:
    rest = format_bytes(machine["resident_bytes"] + machine["kv_cache_bytes"])
    return (
        f"None of these sizes of expert memory fits: {machine['testbed']} has {format_bytes(machine['memory_bytes'])}, and the "
        f"other weights, keys and values take {rest}. The times below assume a machine with more memory."
        if advice.times
        else "Nothing was timed: no decode steps were replayed."
    )


def _cliff(advice: Advice) -> str:
    cycle, top_k = advice.cliff["cycle"], advice.trace["top_k"]
    text = f"Cliff: one token activates {amount(advice, cycle)}. With that much memory LRU hits {advice.cliff['hit_rate_at']:.1%}"
    return f"{text}; with {top_k} fewer, {advice.cliff['hit_rate_before']:.1%}." if cycle > top_k else f"{text}."


def _knee(advice: Advice) -> str:
    slots = advice.knee["slots"]
    rates = {row["rule"]: row["hit_rate"] for row in advice.hit_rates if row["slots"] == slots}
    rule = max((name for name in rates if name != "belady"), key=rates.__getitem__)
    return (
        f"Knee: beyond {amount(advice, slots)} the hit rate grows slowly. At that size the best causal rule, {rule}, hits "
        f"{rates[rule]:.1%}, LRU {rates['lru']:.1%}, Belady {rates['belady']:.1%}."
    )


def _predictors(advice: Advice) -> str:
    simple = [row for row in advice.predictability if row["predictor"] in (HISTORY, PROMPT, SO_FAR, LAST)]
    learned = [row for row in advice.predictability if row["predictor"] in PREFETCHING]
    parts = [f"{_named(row)} predicts {row['recall']:.1%}" for rows in (simple, learned) if rows for row in [_highest(rows)]]
    return f"Recall: of the experts used, {', and '.join(parts)}." if parts else "Recall: nothing was predicted."


def _highest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(rows, key=lambda row: float(row["recall"]))


def _named(row: Mapping[str, Any]) -> str:
    """A predictor and how far ahead it predicts."""
    if row["predictor"] not in PREFETCHING:
        return repr(row["predictor"])
    ahead = "in its last forecast before the gate" if row["distance"] is None else _ahead(row["distance"])
    return f"{row['predictor']}, {ahead},"


def _ahead(distance: int) -> str:
    return f"{distance} layer{'s' * (distance != 1)} ahead"


def _milliseconds(row: Mapping[str, Any]) -> str:
    interval = f" [{row['low'] * 1e3:.1f}, {row['high'] * 1e3:.1f}]" if row["low"] == row["low"] else ""
    return f"{row['tpot_s'] * 1e3:.1f}{interval} ms"
