"""finemoe-plus compared with every other causal system under every eviction rule, on simulated testbeds with PCIe 3.0 to 5.0.

A cell is one trace on one testbed at one size of the expert cache. `python -m finemoe.artifact.analysis.causal_grid` computes the
cells of the two public traces of real models: gpt-oss-20b (five folds of requests, of which three are evaluated, each with the
other four as history) and gemma-4-26b (one request; every system learns online). If traces of recorded miniatures are given, it
computes their cells instead.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from finemoe.artifact.analysis.forecasts import fold_of
from finemoe.artifact.plotting import save_table
from finemoe.cache.rules import RULES
from finemoe.importers import gpt_oss, route_trace
from finemoe.paths import DATA
from finemoe.simulation.cost import CostModel, size_of
from finemoe.simulation.knowledge import Knowledge
from finemoe.simulation.replay import sweep
from finemoe.simulation.systems import System, left_out
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

OURS = "finemoe-plus"
TESTBEDS = ("rtx8000-48gb", "6x-rtx3090", "a100-80gb", "h100")  # PCIe 3.0, 4.0 with six links, 4.0, 5.0
EXPERT_MEMORIES = (0.125, 0.25, 0.5, 0.75)
REPORTED_FOLDS = (2, 3, 4)
CAUSAL_RULES = tuple(name for name, rule in RULES.items() if not rule.needs_future)
OTHERS = {
    "on-demand": System("on-demand"),
    "Mixtral-Offloading": System("mixtral-offloading"),
    "ProMoE": System("promoe"),
    "ProMoE (speculative)": System("promoe", None, {"predictor": "speculative"}),
    "MoE-Infinity": System("moe-infinity"),
    "FineMoE": System("finemoe"),
}
ORACLE = "oracle"
_KEY = ["trace", "testbed", "expert_memory"]


class Part(NamedTuple):
    """A trace to serve, what is known in advance (None: nothing), and the model whose sizes are used (None: the trace's)."""

    name: str
    served: RoutingTrace
    history: RoutingTrace | None
    model: str | None = None


def grid_rows(
    part: Part, testbeds: Sequence[str], prefetch_distance: int = 3, store_capacity: int = 1000
) -> Iterator[pd.DataFrame]:
    """Every system under every rule, testbed by testbed, at every memory size that fits.

    Yields:
        Rows (trace, testbed, expert_memory, system, eviction, tpot_s, hit_rate, demand_bytes, prefetched_bytes, wasted_bytes).
    """
    options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity}
    knowledge = Knowledge(part.served, part.history, **options)
    for testbed in testbeds:
        yield _rows_on(part, testbed, knowledge, options)


def _rows_on(part: Part, testbed: str, knowledge: Knowledge, options: dict[str, Any]) -> pd.DataFrame:
    served = part.served
    cost = CostModel(size_of(part.model, served.num_layers, served.num_experts, served.top_k), Testbed.load(testbed))
    memories = [memory for memory in EXPERT_MEMORIES if cost.fits(memory)]
    missing = left_out(served, OTHERS, options["prefetch_distance"])
    rows: list[dict[str, Any]] = []
    for name, system, rules in _runs(missing):
        reports = sweep(
            served, system.policy, memories, rules, knowledge.of(system.policy),
            hardware=testbed, model=part.model, **options, **system.options,
        )  # fmt: skip
        for (memory, rule), report in zip(itertools.product(memories, rules), reports, strict=True):
            cell = {"trace": part.name, "testbed": testbed, "expert_memory": memory, "system": name, "eviction": rule or "own"}
            fields = ("tpot_s", "hit_rate", "demand_bytes", "prefetched_bytes", "wasted_bytes")
            rows.append(cell | {field: getattr(report, field) for field in fields})
    return pd.DataFrame(rows)


def _runs(missing: dict[str, str]) -> Iterator[tuple[str, System, list[str | None]]]:
    yield OURS, System(OURS), [None]
    yield ORACLE, System(ORACLE), [None]
    for name, system in OTHERS.items():
        if name not in missing:
            yield name, system, [None, *CAUSAL_RULES]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: finemoe-plus' TPOT and bytes relative to the systems it is compared with.

    Returns:
        Rows (trace, testbed, expert_memory, tpot_ms, over_lru, over_promoe, over_finemoe, over_best, best: the fastest other
        causal
        system, gap_closed: share of the way from on-demand loading with LRU to the oracle, bytes_over_lru, waste_over_finemoe).
    """
    return pd.DataFrame([dict(zip(_KEY, key, strict=True)) | _cell(cell) for key, cell in table.groupby(_KEY, sort=False)])


def _cell(cell: pd.DataFrame) -> dict[str, Any]:
    def one(system: str, eviction: str = "own") -> pd.Series:
        return cell[(cell.system == system) & (cell.eviction == eviction)].iloc[0]

    ours, lru, promoe, finemoe, oracle = one(OURS), one("on-demand", "lru"), one("ProMoE"), one("FineMoE"), one(ORACLE)
    others = cell[~cell.system.isin([OURS, ORACLE])]
    best = others.iloc[int(others.tpot_s.to_numpy().argmin())]
    return {
        "tpot_ms": 1e3 * ours.tpot_s,
        "over_lru": ours.tpot_s / lru.tpot_s,
        "over_promoe": ours.tpot_s / promoe.tpot_s,
        "over_finemoe": ours.tpot_s / finemoe.tpot_s,
        "over_best": ours.tpot_s / best.tpot_s,
        "best": f"{best.system}, {best.eviction}",
        "gap_closed": (lru.tpot_s - ours.tpot_s) / (lru.tpot_s - oracle.tpot_s),
        "bytes_over_lru": (ours.demand_bytes + ours.prefetched_bytes) / lru.demand_bytes,
        "waste_over_finemoe": ours.wasted_bytes / finemoe.wasted_bytes if finemoe.wasted_bytes else np.nan,
    }


def overall(cells: pd.DataFrame) -> dict[str, float]:
    """Geometric means of the ratios of TPOT, the worst cell, and means of the rest."""
    ratios = {
        name: float(np.exp(np.log(cells[name]).mean())) for name in ("over_lru", "over_promoe", "over_finemoe", "over_best")
    }
    means = {name: float(cells[name].mean()) for name in ("gap_closed", "bytes_over_lru", "waste_over_finemoe")}
    return ratios | {"worst_over_best": float(cells.over_best.max())} | means


def gpt_oss_parts(path: Path, folds: Sequence[int] = REPORTED_FOLDS, num_requests: int = 20) -> Iterator[Part]:
    """Some folds of the public gpt-oss trace: the first requests of each fold, with all other folds as history."""
    trace = gpt_oss.load_gpt_oss(path)
    fold = fold_of(trace.num_requests)
    for number in folds:
        mine, others = np.flatnonzero(fold == number)[:num_requests], np.flatnonzero(fold != number)
        yield Part(f"gpt-oss-20b, fold {number}", trace.select(mine), trace.select(others), gpt_oss.UNPACKED)


def gemma_part(path: Path) -> Part:
    """The public gemma trace: one request, without a history."""
    return Part("gemma-4-26b", route_trace.load_route_trace(path), None, "gemma-4-26b-a4b")


def miniature_part(path: Path) -> Part:
    """A recorded miniature, split into history and served requests."""
    trace = RoutingTrace.load(path)
    return Part(path.stem, trace.split("served"), trace.split("history"))


def write_table(
    traces: Annotated[list[Path] | None, typer.Argument(help="recorded miniatures; default: the public traces")] = None,
    output: Annotated[Path, typer.Option(help="CSV to which each cell is added when it is complete")] = DATA
    / "reference"
    / "causal_grid.csv",
    folds: Annotated[list[int], typer.Option(help="folds of the gpt-oss requests")] = list(REPORTED_FOLDS),  # noqa: B006
) -> None:
    """Compute cells and write them as CSV; cells that the file already contains are kept."""
    parts: Iterator[Part] = map(miniature_part, traces) if traces else _public_parts(folds)
    table = pd.read_csv(output) if output.exists() else pd.DataFrame(columns=_KEY)
    for part in parts:
        done = set(table[table.trace == part.name].testbed)
        for rows in grid_rows(part, [testbed for testbed in TESTBEDS if testbed not in done]):
            table = pd.concat([table, rows], ignore_index=True)
            save_table(table, output)
            typer.echo(summary(rows).to_string(index=False))
    for name, value in overall(summary(table)).items():
        typer.echo(f"{name}: {value:.3f}")


def _public_parts(folds: Sequence[int]) -> Iterator[Part]:
    yield gemma_part(route_trace.sample_path())
    yield from gpt_oss_parts(gpt_oss.sample_path(), folds)


if __name__ == "__main__":
    typer.run(write_table)
