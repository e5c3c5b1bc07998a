"""How finemoe-plus' margin was chosen: the minimum gain of a prefetch, on two of five folds of the public gpt-oss requests.

`python -m finemoe.artifact.analysis.margin` replays these folds in virtual time at every margin and writes speed and waste. A
smaller margin is faster. The chosen margin is the smallest that wastes, on average over cells, at most a third of what FineMoE
wastes. The reported folds (`analysis.causal_grid`) are different ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from finemoe.artifact.analysis.causal_grid import EXPERT_MEMORIES, OURS, TESTBEDS, Part, gpt_oss_parts
from finemoe.artifact.plotting import save_table
from finemoe.importers import gpt_oss
from finemoe.paths import DATA
from finemoe.report import Report
from finemoe.simulation.cost import CostModel, size_of
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import sweep
from finemoe.simulation.testbed import Testbed

MARGINS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
CHOSEN_FOLDS = (0, 1)


def margin_table(parts: Sequence[Part], margins: Sequence[float] = MARGINS, testbeds: Sequence[str] = TESTBEDS) -> pd.DataFrame:
    """Every margin on every testbed at every memory size.

    Returns:
        Rows (trace, testbed, expert_memory, least_gain, over_lru, over_lru_bytes, wasted_share, waste_over_finemoe): TPOT and
        bytes relative to on-demand loading with LRU, the share of all bytes that was loaded in vain, and this share relative to
        FineMoE's.
    """
    rows = []
    for part in parts:
        knowledge = Knowledge(part.served, part.history)
        for testbed in testbeds:
            rows += _rows_on(part, testbed, knowledge, margins)
    return pd.DataFrame(rows)


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """For each margin, over all cells: the geometric mean and the worst of TPOT over LRU's, and means of the rest."""
    found = table.assign(log=np.log(table.over_lru)).groupby("least_gain")
    means = found[["over_lru_bytes", "wasted_share", "waste_over_finemoe"]].mean()
    return means.assign(over_lru=np.exp(found.log.mean()), worst=found.over_lru.max()).reset_index()


def _rows_on(part: Part, testbed: str, knowledge: Knowledge, margins: Sequence[float]) -> list[dict[str, object]]:
    served = part.served
    cost = CostModel(size_of(part.model, served.num_layers, served.num_experts, served.top_k), Testbed.load(testbed))
    memories = [memory for memory in EXPERT_MEMORIES if cost.fits(memory)]
    options: dict[str, Any] = {"hardware": testbed, "model": part.model}
    floors = sweep(served, "on-demand", memories, ["lru"], **options)
    papers = sweep(served, "finemoe", memories, history=knowledge.of("finemoe"), **options)
    rows = []
    for margin in margins:
        reports = sweep(served, OURS, memories, history=knowledge.of(OURS), least_gain=margin, **options)
        for memory, *those in zip(memories, reports, floors, papers, strict=True):
            cell = {"trace": part.name, "testbed": testbed, "expert_memory": memory, "least_gain": margin}
            rows.append(cell | _ratios(*those))
    return rows


def _ratios(report: Report, floor: Report, paper: Report) -> dict[str, object]:
    moved = _moved_bytes(report)
    return {
        "over_lru": report.tpot_s / floor.tpot_s,
        "over_lru_bytes": moved / _moved_bytes(floor),
        "wasted_share": report.wasted_bytes / moved,
        "waste_over_finemoe": report.wasted_bytes / paper.wasted_bytes if paper.wasted_bytes else np.nan,
    }


def _moved_bytes(report: Report) -> float:
    return float(report.demand_bytes + report.prefetched_bytes)


def write_table(
    trace: Annotated[Path | None, typer.Argument(help="decode_traces.npz; default: next to the checkout")] = None,
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "margin_gpt_oss.csv",
) -> None:
    """Replay the folds at every margin and write the table as CSV."""
    table = margin_table(list(gpt_oss_parts(trace or gpt_oss.sample_path(), CHOSEN_FOLDS)))
    save_table(table, output)
    typer.echo(chosen(table).to_string(index=False))


if __name__ == "__main__":
    typer.run(write_table)
