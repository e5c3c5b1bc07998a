"""Tables of `finemoe replay`: one system in detail, or several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from finemoe.cli.printing import print_rich, print_table, wide_table
from finemoe.cli.replay_setting import Setting

_LOADS = (
    "on demand, used, unused: experts loaded per expert demanded, on demand, ahead of\n"
    "demand and used later, ahead of demand and evicted unused"
)
_TIMES = "loads: experts loaded per expert demanded, on demand and ahead"
Reports = Mapping[tuple[str, float | str], Any]  # by system and expert memory


def rows_of(setting: Setting, reports: Reports) -> list[dict[str, Any]]:
    """A row for each report, ready for JSON."""
    from finemoe.simulation.comparison import comparison_rows
    from finemoe.simulation.comparison_times import time_columns

    rows = comparison_rows(reports, expert_bytes=setting.expert_bytes)  # type: ignore[arg-type]
    rows = [{**row, "num_requests": setting.served.num_requests, **setting.facts(row["expert_memory"])} for row in rows]
    if setting.is_timed:
        rows = [row | times for row, times in zip(rows, time_columns(reports), strict=True)]  # type: ignore[arg-type]
    return rows


def print_systems(setting: Setting, rows: Sequence[dict[str, Any]]) -> None:
    """One table per memory size, one row per system."""
    for number, memory in enumerate(dict.fromkeys(row["expert_memory"] for row in rows)):
        of_memory = [row for row in rows if row["expert_memory"] == memory]
        typer.echo(f"{chr(10) if number else ''}{setting.title(memory)}")
        if setting.served.num_requests == 1:
            typer.echo("one request: no intervals")
        typer.echo("")
        print_rich(_timed(of_memory) if setting.is_timed else _instant(of_memory))
    typer.echo(f"\n{_TIMES if setting.is_timed else _LOADS}")


def _instant(rows: Sequence[dict[str, Any]]) -> Any:
    from finemoe.report_rows import recall_text

    is_one = rows[0]["num_requests"] == 1
    columns = ["hit rate" if is_one else "hit rate [95 %]", "recall", "on demand", "used", "unused"]
    table = wide_table(None, "system", columns)
    for row in rows:
        interval = "" if is_one else f" [{row['low']:.2f}, {row['high']:.2f}]"
        loads = (f"{row[name]:.2f}" for name in ("demand_loads", "useful_loads", "wasted_loads"))
        table.add_row(row["system"], f"{row['hit_rate']:.2f}{interval}", recall_text(row["recall_at_k"]), *loads)
    return table


def _timed(rows: Sequence[dict[str, Any]]) -> Any:
    is_one = rows[0]["num_requests"] == 1
    more = "" if is_one else " [95 %]"
    table = wide_table(None, "system", ["hit rate", f"TTFT, ms{more}", f"TPOT, ms{more}", "loads"])
    for row in rows:
        loads = sum(row[name] for name in ("demand_loads", "useful_loads", "wasted_loads", "unused_loads"))
        table.add_row(
            row["system"], f"{row['hit_rate']:.1%}", _time(row, "ttft", is_one), _time(row, "tpot", is_one), f"{loads:.2f}"
        )
    return table


def _time(row: Mapping[str, Any], name: str, is_one: bool) -> str:
    value, low, high = (row[f"{name}_{part}"] for part in ("s", "low", "high"))
    if value != value:
        return "none"
    return f"{_ms(value)}{'' if is_one or low != low else f' [{_ms(low)}, {_ms(high)}]'}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


def print_system(setting: Setting, memory: float | str, report: Any) -> None:
    """One report in detail."""
    rows = report.rows() if setting.is_timed else _counts(report)
    print_table(setting.title(memory), rows)


def _counts(report: Any) -> list[tuple[str, str]]:
    """The rows of a report that counts experts."""
    from finemoe.report_rows import recall_text

    return [
        ("policy / eviction", f"{report.policy} / {report.eviction}"),
        ("hit rate", f"{report.hit_rate:.1%}  ({report.hits:,} of {report.accesses:,} accesses)"),
        ("misses", f"{report.misses:,}"),
        ("recall at K", recall_text(report.recall_at_k)),
        ("loaded on demand", f"{report.demand_bytes:,} experts"),
        ("prefetched", f"{report.prefetched_bytes:,} experts"),
        ("  used since", f"{report.useful_bytes:,} experts"),
        ("  evicted unused", f"{report.wasted_bytes:,} experts"),
    ]
