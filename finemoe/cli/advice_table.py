"""Prints advice in words and as tables that are 80 columns wide."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import typer

from finemoe.advice.result import Advice
from finemoe.advice.sentences import sentences
from finemoe.advice.systems import ALL, RULES
from finemoe.cli.printing import counted, digits, print_rich, wide_table
from finemoe.units import format_bytes

_WIDTH = 80
_NUM_SIZES = 8  # columns after a name
_CONCENTRATION = {
    "touched": "experts used at all",
    "effective": "effective number of experts",
    "top_tenth": "share of the top 10 %",
    "top_quarter": "share of the top 25 %",
    "gini": "Gini coefficient",
}
_SHORT = {  # of systems, so that a name fits before eight sizes
    "on-demand (LRU)": "LRU",
    "on-demand (LFU)": "LFU",
    "on-demand (LFRU)": "LFRU",
    "on-demand (next use)": "next use",
    "Belady (on demand)": "Belady",
    "everything resident": "all resident",
}


def print_advice(advice: Advice, title: str) -> None:
    """Print everything that the advice contains."""
    typer.echo(f"{title}\n{_geometry(advice)}\n")
    for text in [*sentences(advice), *(f"Warning: {warning}." for warning in advice.warnings)]:
        typer.echo(textwrap.fill(text, _WIDTH, initial_indent="* ", subsequent_indent="  "))
    _print_working_set(advice)
    _print_reuse(advice)
    _print_concentration(advice)
    _print_predictability(advice)
    _print_hit_rates(advice)
    if advice.times:
        _print_times(advice)
    if advice.sensitivity:
        _print_sensitivity(advice)
    typer.echo("")
    for name, reason in advice.left_out.items():
        typer.echo(f"left out: {name}, {reason}")
    for note in advice.notes:
        typer.echo(textwrap.fill(f"note: {note}", _WIDTH, subsequent_indent="  "))


def _geometry(advice: Advice) -> str:
    facts, machine = advice.trace, advice.machine
    name = facts["model"] or "a model without a name"
    sizes = f"{counted(facts['layers'], 'layer')} x {counted(facts['experts'], 'expert')} / {facts['top_k']}"
    parts = (("requests", "request"), ("tokens", "token"), ("decode_steps", "decode step"))
    served = ", ".join(counted(facts[name], noun) for name, noun in parts)
    each = "" if facts["expert_bytes"] is None else f", {format_bytes(facts['expert_bytes'])} an expert"
    where = "" if machine is None else f"\non {machine['testbed']}"
    return f"{name}, {sizes}{each}\n{served}{where}"


def _print_working_set(advice: Advice) -> None:
    rows = [(f"{row['tokens']:g} token{'s' * (row['tokens'] != 1)}", row) for row in advice.working_set]
    rows.append((f"a request of {advice.request['tokens']:.0f}", advice.request))
    table = _table("distinct experts used", "over", ["a layer", "least", "most", "all layers", "of all", "bytes"])
    count, each = advice.trace["all_experts"], advice.trace["expert_bytes"]
    for name, row in rows:
        sizes = (f"{row[column]:.1f}" for column in ("mean", "least", "greatest"))
        size = "" if each is None else format_bytes(row["experts"] * each)
        table.add_row(name, *sizes, f"{row['experts']:,.0f}", f"{row['experts'] / count:.0%}", size)
    _print(table)


def _print_reuse(advice: Advice) -> None:
    title = "reuse: share of uses that follow the last use of an expert within"
    table = _table(title, "tokens", [f"{row['tokens']}" for row in advice.reuse])
    table.add_row("share, %", *(f"{100 * row['share']:.1f}" for row in advice.reuse))
    _print(table)


def _print_concentration(advice: Advice) -> None:
    """The mean over layers, and the layers at both ends."""
    table = _table("concentration of use in a layer", "", ["mean", "least (layer)", "most (layer)"])
    for name, title in _CONCENTRATION.items():
        values = [row[name] for row in advice.concentration]
        ends = (f"{digits(values[layer])} ({layer})" for layer in (values.index(min(values)), values.index(max(values))))
        table.add_row(title, digits(sum(values) / len(values)), *ends)
    _print(table)


def _print_predictability(advice: Advice) -> None:
    table = _table("recall: share of the experts used that were predicted", "by", ["layers ahead", "recall", "95 %"])
    for row in advice.predictability:
        distance = "" if row["distance"] is None else str(row["distance"])
        interval = "" if row["low"] != row["low"] else f"[{row['low']:.1%}, {row['high']:.1%}]"
        table.add_row(row["predictor"], distance, f"{row['recall']:.1%}", interval)
    _print(table)


def _print_hit_rates(advice: Advice) -> None:
    values = {(row["rule"], row["slots"]): row["hit_rate"] for row in advice.hit_rates}
    sizes = [slots for slots in advice.slots if (RULES[0], slots) in values]
    _print_by_size(
        advice,
        "hit rate when experts are loaded on demand, %",
        RULES,
        sizes,
        lambda rule, slots: f"{100 * values[rule, slots]:.1f}",
    )


def _print_times(advice: Advice) -> None:
    values = {(row["system"], row["slots"]): row for row in advice.times}
    names = [name for name in ALL if any(system == name for system, _ in values)]

    def text(name: str, slots: int) -> str:
        if (name, slots) not in values:  # a system that holds everything has one size
            return ""
        row = values[name, slots]
        return f"{digits(row['tpot_s'] * 1e3)}{'' if row['fits'] else '*'}"

    title = "time per token, ms, in virtual time; * does not fit in the memory"
    _print_by_size(advice, title, names, sorted({slots for _, slots in values}), text)


def _print_sensitivity(advice: Advice) -> None:
    table = _table("sensitivity of the recommended size", "", ["memory", "on demand", "prefetching", "ratio"])
    for row in advice.sensitivity:
        times = (f"{row[name] * 1e3:.1f} ms" for name in ("on_demand_s", "prefetching_s"))
        table.add_row(row["change"], format_bytes(row["bytes"]) + ("" if row["fits"] else "*"), *times, f"{row['ratio']:.2f}")
    _print(table)


def _print_by_size(
    advice: Advice, title: str, names: Sequence[str], sizes: Sequence[int], text: Callable[[str, int], str]
) -> None:
    """One row a name, one column a size."""
    chosen = advice.recommendation["slots"] if advice.recommendation else advice.cliff["cycle"]
    shown = _spread(sizes, {chosen, advice.cliff["cycle"]})
    count, each = advice.trace["all_experts"], advice.trace["expert_bytes"]
    heads = [f"{slots / count:.0%}" if each is None else digits(slots * each / (1 << 30)) for slots in shown]
    table = _table(title, "expert memory" if each is None else "expert memory, GiB", heads)
    for name in names:
        table.add_row(_SHORT.get(name, name), *(text(name, slots) for slots in shown))
    _print(table)


def _spread(sizes: Sequence[int], needed: set[int]) -> list[int]:
    """As many sizes as fit: the needed ones, and others spread evenly."""
    if len(sizes) <= _NUM_SIZES:
        return list(sizes)
    evenly = [sizes[round(place * (len(sizes) - 1) / (_NUM_SIZES - 1))] for place in range(_NUM_SIZES)]
    for size in sorted(needed & set(sizes) - set(evenly)):
        nearest = min(set(evenly[1:-1]) - needed, key=lambda one: (abs(one - size), one))
        evenly[evenly.index(nearest)] = size
    return sorted(evenly)


def _table(title: str, name: str, columns: Sequence[str]) -> Any:
    return wide_table(title, name, columns)


def _print(table: Any) -> None:
    typer.echo("")
    print_rich(table)
