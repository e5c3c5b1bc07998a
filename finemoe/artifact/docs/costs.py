"""What every notebook cost in a run of the pipeline, as the documentation states it.

`python -m finemoe.artifact.docs.costs` makes the table anew from results/costs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe.artifact.docs.tables import Number, shipped
from finemoe.artifact.plotting import machine, save_table
from finemoe.paths import DATA, RESULTS

if TYPE_CHECKING:
    import pandas as pd

_COSTS = "reference/docs/notebook_costs_measured.csv"
_MINUTE_S = 60.0


def cost_numbers() -> Iterator[Number]:
    """`cpu_NAME` of every rule, and of which run they are."""
    table = shipped(_COSTS)
    for rule, seconds in table.set_index("rule").cpu_s.items():
        yield Number(f"cpu_{rule}", _duration(seconds), _COSTS, f"processor time of the rule {rule}, all its jobs")
    yield Number("cpu_run", str(table.run.iloc[0]), _COSTS, "the run whose costs are shown")
    yield Number("cpu_machine", str(table.machine.iloc[0]), _COSTS, "where it ran")
    yield Number("cpu_memory", f"{table.max_rss_mb.max() / 1e3:.1f} GB", _COSTS, "memory of its largest process")


def costs_table(folder: Path, run: str, where: str) -> "pd.DataFrame":
    """Costs that a run left behind, one row for each rule.

    Args:
        folder: a run's folder of costs: RULE.tsv, or a folder RULE with a table for each job.
        run: the command that ran. where: the machine.
    Returns:
        rule, jobs, cpu_s and wall_s (sums over jobs), max_rss_mb (the largest), run, machine.
    """
    import pandas as pd

    rows = []
    for rule in sorted({path.relative_to(folder).parts[0].removesuffix(".tsv") for path in folder.rglob("*.tsv")}):
        paths = [folder / f"{rule}.tsv"] if (folder / f"{rule}.tsv").is_file() else sorted((folder / rule).rglob("*.tsv"))
        jobs = pd.concat([pd.read_csv(path, sep="\t") for path in paths])
        rows.append((rule, len(jobs), jobs.cpu_s.sum(), jobs.wall_s.sum(), jobs.max_rss_mb.max(), run, where))
    return pd.DataFrame(rows, columns=["rule", "jobs", "cpu_s", "wall_s", "max_rss_mb", "run", "machine"])


def _duration(seconds: float) -> str:
    """As in "8 s" or "2.5 min"."""
    return f"{max(seconds, 1):.0f} s" if seconds < 2 * _MINUTE_S else f"{seconds / _MINUTE_S:.1f} min"


def main(
    folder: Annotated[Path, typer.Argument(help="a run's folder of costs")] = RESULTS / "costs",
    run: Annotated[str, typer.Option(help="the command that ran")] = "make reproduce",
) -> None:
    """Make the table of the notebooks' costs from a run on this machine."""
    save_table(costs_table(folder, run, machine()), DATA / _COSTS)


if __name__ == "__main__":
    typer.run(main)
