"""Every number of an advice in tables, for the page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finemoe.advice.result import Advice
from finemoe.artifact.advice.html import Column, table
from finemoe.artifact.advice.tables import has_interval, names_in
from finemoe.units import format_bytes

Row = Mapping[str, Any]


def tables_of(advice: Advice) -> list[str]:
    """The results, one table each; empty tables are left out."""
    made: list[tuple[str, Sequence[Column], Sequence[Row]]] = [
        ("Time per token of every system and size", _times(advice), advice.times),
        ("Prefetching against loading on demand", _prefetching(advice), advice.prefetching),
        ("Hit rates of every rule and size, % [95 % interval]", _rates(advice), _rates_by_size(advice)),
        ("Recall of every predictor", _recalls(), advice.predictability),
        ("Distinct experts of a layer over windows of tokens", _working_set(advice), _windows(advice)),
        ("Use of each layer's experts", _concentration(), advice.concentration),
        ("Reuse", _reuse(), advice.reuse),
        ("Sensitivity of the recommended size", _sensitivity(), advice.sensitivity),
        ("The trace", _facts(), list(_trace(advice))),
        ("The machine", _facts(), list(_machine(advice))),
    ]
    return [table(title, columns, rows) for title, columns, rows in made if rows]


def milliseconds(row: Row) -> str:
    """A time per token in ms, with its interval if there is one."""
    interval = f" [{1e3 * row['low']:.2f}, {1e3 * row['high']:.2f}]" if has_interval(row) else ""
    return f"{1e3 * row['tpot_s']:.2f}{interval}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash if there is none."""
    return "-" if value is None or value != value else f"{100 * value:.{digits}f}"


def _memory(advice: Advice) -> list[Column]:
    """A size in experts, as a share of all, and in bytes if the size of an expert is known."""
    count, each = advice.trace["all_experts"], advice.trace["expert_bytes"]
    columns: list[Column] = [
        ("experts", lambda row: f"{row['slots']:,}"),
        ("% of all", lambda row: f"{100 * row['slots'] / count:.1f}"),
    ]
    return columns if each is None else [*columns, ("memory", lambda row: format_bytes(row["slots"] * each))]


def _times(advice: Advice) -> list[Column]:
    return [
        ("system", lambda row: row["system"]),
        *_memory(advice),
        ("fits", lambda row: "yes" if row["fits"] else "no"),
        ("ms per token [95 %]", milliseconds),
        ("tokens/s", lambda row: f"{row['tokens_per_s']:.2f}"),
        ("ms to the first token", lambda row: "-" if row["ttft_s"] != row["ttft_s"] else f"{1e3 * row['ttft_s']:.1f}"),
        ("waiting for weights, %", lambda row: percent(row["stalled"])),
        ("hit rate, %", lambda row: percent(row["hit_rate"])),
        ("recall, %", lambda row: percent(row["recall_at_k"])),
    ]


def _prefetching(advice: Advice) -> list[Column]:
    return [
        *_memory(advice),
        ("on demand", lambda row: row["on_demand"]),
        ("prefetching", lambda row: row["prefetching"]),
        ("ratio of times", lambda row: f"{row['ratio']:.3f}"),
        ("95 %", lambda row: f"[{row['low']:.3f}, {row['high']:.3f}]" if has_interval(row) else "-"),
        ("prefetching", lambda row: row["verdict"]),
    ]


def _rates(advice: Advice) -> list[Column]:
    return [*_memory(advice), *(_rate(rule) for rule in names_in(advice.hit_rates, "rule"))]


def _rate(rule: str) -> Column:
    return rule, lambda row: _rate_text(row[rule])


def _rate_text(row: Row) -> str:
    interval = f" [{percent(row['low'])}, {percent(row['high'])}]" if has_interval(row) else ""
    return f"{percent(row['hit_rate'])}{interval}"


def _rates_by_size(advice: Advice) -> list[Row]:
    """One row per size, with the row of each rule by its name."""
    found: dict[int, dict[str, Any]] = {}
    for row in advice.hit_rates:
        found.setdefault(row["slots"], {"slots": row["slots"]})[row["rule"]] = row
    return [found[slots] for slots in sorted(found)]


def _recalls() -> list[Column]:
    return [
        ("predictor", lambda row: row["predictor"]),
        ("layers ahead", lambda row: "-" if row["distance"] is None else str(row["distance"])),
        ("recall, %", lambda row: percent(row["recall"])),
        ("95 %", lambda row: f"[{percent(row['low'])}, {percent(row['high'])}]" if has_interval(row) else "-"),
    ]


def _working_set(advice: Advice) -> list[Column]:
    count, each = advice.trace["all_experts"], advice.trace["expert_bytes"]
    columns: list[Column] = [
        ("tokens", lambda row: row["name"]),
        ("mean", lambda row: f"{row['mean']:.2f}"),
        ("least layer", lambda row: f"{row['least']:.2f}"),
        ("greatest layer", lambda row: f"{row['greatest']:.2f}"),
        ("all layers", lambda row: f"{row['experts']:,.1f}"),
        ("% of all", lambda row: percent(row["experts"] / count)),
    ]
    return columns if each is None else [*columns, ("memory", lambda row: format_bytes(row["experts"] * each))]


def _windows(advice: Advice) -> list[Row]:
    windows = [{**row, "name": f"{row['tokens']:g}"} for row in advice.working_set]
    return [*windows, {**advice.request, "name": f"a request, {advice.request['tokens']:.1f} on average"}]


def _concentration() -> list[Column]:
    return [
        ("layer", lambda row: str(row["layer"])),
        ("used at all", lambda row: str(row["touched"])),
        ("effective number", lambda row: f"{row['effective']:.1f}"),
        ("entropy, bits", lambda row: f"{row['entropy_bits']:.2f}"),
        ("most used 10 %, % of uses", lambda row: percent(row["top_tenth"])),
        ("most used 25 %, % of uses", lambda row: percent(row["top_quarter"])),
        ("Gini", lambda row: f"{row['gini']:.3f}"),
    ]


def _reuse() -> list[Column]:
    return [("within tokens", lambda row: f"{row['tokens']:g}"), ("share of uses, %", lambda row: percent(row["share"]))]


def _sensitivity() -> list[Column]:
    return [
        ("change", lambda row: row["change"]),
        ("experts", lambda row: f"{row['slots']:,}"),
        ("memory", lambda row: format_bytes(row["bytes"])),
        ("fits", lambda row: "yes" if row["fits"] else "no"),
        ("on demand, ms", lambda row: f"{1e3 * row['on_demand_s']:.2f}"),
        ("prefetching, ms", lambda row: _or_dash(1e3 * row["prefetching_s"], ".2f")),
        ("ratio", lambda row: _or_dash(row["ratio"], ".3f")),
    ]


def _or_dash(value: float, form: str) -> str:
    return "-" if value != value else format(value, form)


def _facts() -> list[Column]:
    return [("", lambda row: row["name"]), ("value", lambda row: row["value"])]


def _trace(advice: Advice) -> Iterator[Row]:
    facts = advice.trace
    yield {"name": "model", "value": facts["model"] or "not stated"}
    for name in ("requests", "tokens", "decode_steps", "layers", "experts", "top_k", "all_experts"):
        yield {"name": _TRACE_NAMES.get(name, name), "value": f"{facts[name]:,}"}
    yield {"name": "gate weights recorded", "value": "yes" if facts["has_weights"] else "no"}
    for name in ("expert_bytes", "all_experts_bytes"):
        if facts[name] is not None:
            yield {"name": _TRACE_NAMES[name], "value": f"{facts[name]:,} B ({format_bytes(facts[name])})"}


_TRACE_NAMES = {
    "decode_steps": "decode steps",
    "experts": "experts of a layer",
    "top_k": "experts a token uses in a layer (K)",
    "all_experts": "experts of all layers",
    "expert_bytes": "size of an expert",
    "all_experts_bytes": "size of all experts",
}


def _machine(advice: Advice) -> Iterator[Row]:
    machine = advice.machine
    if machine is None:
        return
    yield {"name": "testbed", "value": machine["testbed"]}
    yield {"name": "devices", "value": str(machine["devices"])}
    sizes = {
        "memory_bytes": "memory of a device",
        "resident_bytes": "other weights",
        "kv_cache_bytes": "keys and values of the longest request",
        "room_bytes": "room for experts, all devices",
        "expert_bytes": "one expert as it is loaded",
    }
    for name, text in sizes.items():
        yield {"name": text, "value": f"{machine[name]:,} B ({format_bytes(machine[name])})"}
    yield {"name": "longest request", "value": f"{machine['longest_request']:,} tokens"}
    yield {"name": "link", "value": f"{machine['link_bytes_per_s'] / 1e9:.1f} GB/s"}
    yield {"name": "time to load an expert", "value": f"{1e3 * machine['expert_load_s']:.3f} ms"}
