"""`finemoe replay --compare`: every system of the paper on one trace, as a table and, with the extra `artifact`, as a figure."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from finemoe.cli.messages import writing
from finemoe.cli.printing import print_json
from finemoe.cli.replay_setting import Setting
from finemoe.cli.replay_tables import print_systems, rows_of
from finemoe.extras import module_of_extra


def drawing() -> ModuleType:
    """The module that draws comparisons.

    Raises:
        FinemoeError: the extra is not installed.
    """
    return module_of_extra("finemoe.artifact.analysis.comparison_figure", "--figure")


def compare_systems(
    setting: Setting,
    history: Any,
    memories: list[float | str],
    figure: Path | None,
    as_json: bool,
    others: Sequence[str],
    **options: Any,
) -> None:
    """Replay every system at every memory size, print what each did, and draw it to a file stem if one is given.

    Args:
        history: requests known beforehand. others: policies to compare with the paper's systems. options: as in
            `system_reports`.
    """
    from finemoe.simulation.comparison import system_reports
    from finemoe.simulation.systems import SYSTEMS, System, left_out

    known = {system.policy for system in SYSTEMS.values()}
    systems = {**SYSTEMS, **{name: System(name) for name in others if name not in known}}
    systems |= {"oracle": System("oracle")} if setting.is_timed else {}
    for name, reason in left_out(setting.served, systems, options["prefetch_distance"]).items():
        typer.echo(f"left out: {name}, {reason}", err=True)
    shares: Any = memories
    reports: Any = system_reports(history, setting.served, systems, shares, **setting.options, **options)
    rows = rows_of(setting, reports)
    if figure is not None:
        details = (
            f"d = {options['prefetch_distance']}",
            f"C = {options['store_capacity']}",
            f"served requests: {setting.served.num_requests}",
        )
        stem = figure.with_suffix("") if figure.suffix in (".pdf", ".png", ".csv") else figure
        machine = setting.testbed.title if setting.is_timed else ""
        with writing(stem):
            drawing().save_comparison(rows, setting.path.stem, details, stem.resolve(), machine)
    if as_json:
        print_json(rows)
        return
    print_systems(setting, rows)
    if figure is not None:
        typer.echo(f"\n{stem}.pdf, .png, .csv: the same as a figure and its table")
