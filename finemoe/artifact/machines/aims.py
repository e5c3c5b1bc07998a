"""Targets on a GPU, and what a machine reached."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from finemoe.artifact.machines.cells import cells_table, link_peak
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.schema import LAUNCHING, PREFETCHED

MET, MISSED, NOT_MEASURED, NOT_BOUND = "met", "missed", "not measured", "not bound by the link"
_OWN_VARIANTS = ("eager", "grouped_mm", "batched_mm")  # Transformers' own; the last two may round differently


@dataclass(frozen=True)
class Aim:
    """A target: in words, as a test of the number reached, and how that number is written."""

    text: str
    is_met: Callable[[float], bool]
    shown: str
    scale: float = 1.0


BITS = "steps that differ from eager in any bit"
COPIED = "rate of prefetches during inference, over the link's peak"
LINK_USE = "link use while loading on demand, at the smallest memory"
OVER_LIMIT = "FineMoE's TPOT over its limit, at worst"
ACCELERATE = "times faster per token than Accelerate, equal device memory"
OVERHEAD = "FineMoE's overhead over eager, every expert resident"
SIMULATED = "largest error of the calibrated simulator's TPOT"
AIMS = {
    BITS: Aim("0", lambda found: found == 0, "{:.0f}"),
    COPIED: Aim(">= 90 %", lambda found: found >= 0.9, "{:.1f} %", 100.0),
    LINK_USE: Aim(">= 90 %", lambda found: found >= 0.9, "{:.1f} %", 100.0),
    OVER_LIMIT: Aim("<= 1.15", lambda found: found <= 1.15, "{:.2f}"),
    ACCELERATE: Aim(">= 20", lambda found: found >= 20, "{:.1f}"),
    OVERHEAD: Aim("<= 5 %", lambda found: found <= 0.05, "{:+.1f} %", 100.0),
    SIMULATED: Aim("<= 15 %", lambda found: found <= 0.15, "{:.1f} %", 100.0),
}


def targets_table(machine: Measured) -> pd.DataFrame:
    """Targets on a GPU and what this machine reached: (model, target, aim, reached, verdict).

    Bits and the copies' rate are the machine's; the rest goes by model. The link is judged where it is the bottleneck: loading on
    demand at the smallest memory, if the bytes at its peak take most of the limit there.
    """
    rows = [("all", target, reached) for target, reached in ((BITS, _different(machine)), (COPIED, _copied(machine)))]
    for model in models_of(machine):
        rows += [(model, target, reached) for target, reached in _of_model(machine, model)]
    table = pd.DataFrame(rows, columns=["model", "target", "reached"])
    table.insert(2, "aim", [AIMS[target].text for target in table.target])
    table["verdict"] = [_verdict(target, reached) for target, reached in zip(table.target, table.reached, strict=True)]
    table.loc[(table.target == LINK_USE) & ~table.model.isin(_bound_models(machine)), "verdict"] = NOT_BOUND
    table.loc[table.reached.isna(), "verdict"] = NOT_MEASURED
    return table


def models_of(machine: Measured) -> list[str]:
    """The timed models, or, if none was timed, the planned ones."""
    timed = [str(model) for name in ("requests", "overhead", "baselines") for model in machine.tables[name].model]
    return list(dict.fromkeys(timed or machine.facts["settings"]["models"]))


def shown(target: str, reached: float) -> str:
    """An achieved number, formatted for a page."""
    return NOT_MEASURED if pd.isna(reached) else AIMS[target].shown.format(AIMS[target].scale * reached)


def _verdict(target: str, reached: float) -> str:
    return MET if AIMS[target].is_met(reached) else MISSED


def checked_steps(machine: Measured) -> tuple[int, int]:
    """The number of steps compared with eager, with delays or with every expert resident, and how many differed in any bit."""
    checked, overhead = machine.tables["correctness"], machine.tables["overhead"]
    ours = overhead[~overhead.variant.isin(_OWN_VARIANTS)].drop_duplicates(["model", "variant"])  # compared once for all rounds
    different = int(checked.num_different_steps.sum()) + sum(not one for one in ours.is_equal)
    return int(checked.num_steps.sum()) + len(ours), different


def _different(machine: Measured) -> float:
    steps, different = checked_steps(machine)
    return float(different) if steps else float("nan")


def _copied(machine: Measured) -> float:
    copies = machine.tables["copies"]
    own = copies[(copies["mode"] == PREFETCHED) & (copies.main_thread == LAUNCHING)]
    return float(own.bytes_per_s.max() / link_peak(machine))


def _of_model(machine: Measured, model: str) -> Iterator[tuple[str, float]]:
    cells = cells_table(machine)
    mine = cells[cells.model == model]
    yield LINK_USE, float(_smallest_on_demand(mine).link_use.max())
    yield OVER_LIMIT, float(mine[mine.policy == "finemoe"].over_limit.max())
    yield ACCELERATE, _times_faster(machine, mine, model)
    overhead = machine.tables["overhead"]
    seconds = overhead[overhead.model == model].groupby("variant").seconds_per_token.median()
    yield OVERHEAD, float(seconds.get("finemoe", float("nan")) / seconds.get("eager", float("nan")) - 1)
    yield SIMULATED, float(mine.error.abs().max())


def _smallest_on_demand(cells: pd.DataFrame) -> pd.DataFrame:
    mine = cells[cells.policy == "on-demand"]
    return mine[mine.expert_memory == mine.expert_memory.min()]


def _bound_models(machine: Measured) -> list[str]:
    """Models whose bytes at the link's peak take at least half of the limit there, or whose limit was not computed."""
    cells = cells_table(machine)
    smallest = [_smallest_on_demand(part) for _, part in cells.groupby("model", sort=False)]
    return [str(one.model.iloc[0]) for one in smallest if len(one) and not (one.link_use * one.over_limit).max() < 0.5]


def _times_faster(machine: Measured, cells: pd.DataFrame, model: str) -> float:
    baselines = machine.tables["baselines"]
    theirs = baselines[(baselines.model == model) & (baselines.system == "accelerate")]
    ours = cells[(cells.policy == "finemoe") & cells.expert_memory.isin(theirs.expert_memory)]
    same = theirs[theirs.expert_memory.isin(ours.expert_memory)]
    return float(same.tpot_s.mean() / ours.tpot_s.mean())
