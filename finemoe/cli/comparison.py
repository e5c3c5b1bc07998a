"""`finemoe replay --compare`: every system of the paper on one trace, as a table and, with what figures need, as a picture."""

from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from finemoe.cli.printing import print_json
from finemoe.extras import module_of_extra


def drawing() -> ModuleType:
    """What draws comparisons.

    Raises:
        FinemoeError: it is not installed.
    """
    return module_of_extra("finemoe.artifact.analysis.comparison_figure", "--figure")


def compare_systems(
    path: Path,
    history: Any,
    served: Any,
    expert_memories: list[float],
    prefetch_distance: int,
    store_capacity: int,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Replay every system at every memory size, print what each did, and draw it to a file stem if one is given."""
    from finemoe.simulation.comparison import comparison_rows, system_reports
    from finemoe.simulation.systems import SYSTEMS, left_out

    for name, reason in left_out(served, SYSTEMS, prefetch_distance).items():
        typer.echo(f"left out: {name}, {reason}", err=True)
    reports = system_reports(history, served, SYSTEMS, expert_memories, prefetch_distance, store_capacity)
    rows = comparison_rows(reports)
    if figure is not None:
        details = (f"d = {prefetch_distance}", f"C = {store_capacity}", f"served requests: {served.num_requests}")
        stem = figure.with_suffix("") if figure.suffix in (".pdf", ".png", ".csv") else figure
        drawing().save_comparison(rows, path.stem, details, stem.resolve())
    if as_json:
        print_json([{**row, "num_requests": served.num_requests} for row in rows])
    else:
        _print_rows(path, rows, served.num_requests)


def _print_rows(path: Path, rows: list[dict[str, Any]], num_requests: int) -> None:
    """One table per memory size."""
    from rich.console import Console

    served = "one served request (which has no interval)" if num_requests == 1 else f"{num_requests} served requests"
    for memory in dict.fromkeys(row["expert_memory"] for row in rows):
        typer.echo(f"{path}, {served}, instant link, {memory:.4g} of the experts")
        of_memory = [row for row in rows if row["expert_memory"] == memory]
        Console(markup=False, emoji=False).print(_table_of(of_memory, num_requests == 1))


def _table_of(rows: list[dict[str, Any]], is_one: bool) -> Any:
    from rich.table import Table

    from finemoe.report import recall_text

    caption = "loads per expert demanded: on demand; undemanded and used later;\nundemanded and evicted unused"
    table = Table(caption=caption, padding=(0, 0, 0, 1))  # 80 columns wide
    table.add_column("system", no_wrap=True)
    for column in ("hit rate" if is_one else "hit rate [95 %]", "recall", "demand", "used", "wasted"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        interval = "" if is_one else f" [{row['low']:.2f}, {row['high']:.2f}]"
        loads = (f"{row[name]:.2f}" for name in ("demand_loads", "useful_loads", "wasted_loads"))
        table.add_row(row["system"], f"{row['hit_rate']:.2f}{interval}", recall_text(row["recall_at_k"]), *loads)
    return table
