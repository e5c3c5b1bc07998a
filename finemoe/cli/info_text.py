"""What `finemoe info` prints about a model, in groups and in units that people read."""

import textwrap
from collections.abc import Mapping
from typing import Any

import typer

from finemoe.cli.printing import counted, digits, print_table
from finemoe.units import format_bytes

_WIDTH = 80


def print_model(what: str, facts: Mapping[str, Any]) -> None:
    """Print the model, its bytes, and what a machine holds of it."""
    print_table(what, _model_rows(facts))
    print_table("\nbytes", _bytes_rows(facts))
    print_table(f"\non {facts['machine']}", _machine_rows(facts))
    if "tokens_per_s" not in facts and facts["fits"]:
        typer.echo(f"\nfinemoe info {what} --hardware here predicts tokens per second: it measures this machine once.")
    if not facts["fits"]:
        text = f"It does not fit: {_why_not(facts)}."
        typer.echo("\n" + textwrap.fill(text, _WIDTH, break_on_hyphens=False))


def _model_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    layers = f"{counted(facts['num_layers'], 'layer')} x {counted(facts['num_experts'], 'expert')}"
    dense = f", and {counted(facts['dense_layers'], 'layer')} without experts" if facts["dense_layers"] else ""
    active = facts["active_params"]
    return [
        ("family", facts.get("architecture", facts["name"])),
        ("parameters", f"{_billions(facts['total_params'])}, of which a token uses {_billions(active)}"),
        ("experts", f"{layers}, {facts['experts_per_token']} per token{dense}"),
        ("format of the experts", facts["expert_format"]),
    ]


def _bytes_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = facts["expert_bytes"] / facts["unpacked_expert_bytes"]
    packed = "" if share == 1 else f", {share:.0%} of its size in bf16"
    rows = [
        ("one expert", format_bytes(facts["expert_bytes"]) + packed),
        ("all experts", format_bytes(facts["all_experts_bytes"])),
        ("all other weights", format_bytes(facts["other_weights_bytes"])),
        ("KV cache of 1,000 tokens", format_bytes(facts["kv_cache_bytes_per_1000_tokens"])),
        ("smallest expert memory", f"{format_bytes(facts['smallest_expert_memory_bytes'])}: {facts['smallest_because']}"),
        ("expert memory of one token", f"{facts['recommended_expert_memory']}: {_first(facts['recommended_because'])}"),
    ]
    return [*rows, *(("types of the experts", _layers(facts["layers"])) for _ in range("layers" in facts))]


def _machine_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    reserve, context = facts["machine_reserve_bytes"], facts["context"]
    rows = [
        ("memory", f"{format_bytes(facts['machine_memory_bytes'])}, of which {format_bytes(reserve)} stay free"),
        (f"KV cache of {context:,} tokens", format_bytes(facts["kv_cache_bytes"])),
    ]
    if not facts["fits"]:
        return rows
    rows.append(("largest expert memory", format_bytes(facts["largest_expert_memory_bytes"])))
    rows.append(("host memory", _host(facts)))
    if "tokens_per_s" not in facts:
        return rows
    rule = f" --eviction {facts['eviction']}" if facts["eviction"] else ""
    low, high = map(digits, facts["tokens_per_s"])
    slow, fast = (digits(1e3 * value) for value in facts["tpot_s"])
    return [
        *rows,
        ("recommended", f"--expert-memory {_option(facts['expert_memory_here_bytes'])} --policy {facts['policy']}{rule}"),
        ("predicted", f"{_range(low, high)} tokens/s, {_range(slow, fast)} ms per token"),
        ("  based on", facts["basis"]),
    ]


def _host(facts: Mapping[str, Any]) -> str:
    host, disk = facts["host_memory_bytes"], facts["disk_bytes"]
    if host is None:
        return f"{format_bytes(facts['all_experts_bytes'])} are needed for all experts"
    if disk:
        return f"{format_bytes(host)} do not hold all experts: {format_bytes(disk)} stay on disk (--host-memory)"
    return f"{format_bytes(host)} hold all experts"


def _why_not(facts: Mapping[str, Any]) -> str:
    needed = facts["other_weights_bytes"] + facts["kv_cache_bytes"] + facts["smallest_expert_memory_bytes"]
    text = f"{format_bytes(needed)} are needed with one expert in memory"
    most = facts["largest_context"]
    return f"{text}; the largest context that fits is {most:,} tokens" if most else f"{text}, more than there is"


def _first(reason: str) -> str:
    """The first part of a reason; JSON has the rest."""
    return reason.partition(";")[0]


def _layers(layers: list[dict[str, Any]]) -> str:
    return "\n".join(", ".join(f"{key} {item}" for key, item in one.items()) for one in layers)


def _billions(value: int) -> str:
    return f"{value / 1e9:.1f} billion" if value >= 1e9 else f"{value / 1e6:.1f} million"


def _option(num_bytes: int) -> str:
    from finemoe.planning.choices import as_option

    return as_option(num_bytes)


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
