"""What machines measured (`data/measured/<machine>/`, made by finemoe.artifact.gpu_bench), as tables for figure and pages.

`python -m finemoe.artifact.analysis.measured` renews what README, docs/gpu.md and the shipped claims say of `data/measured`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS
from finemoe.artifact.measured import LAUNCHING, MAPPED, MEASURED, PREFETCHED, Measured, gpus_first, read_foretold

SYSTEM_NAMES = {system.policy: name for name, system in LATENCY_SYSTEMS.items()}
CELL = ["model", "policy", "expert_memory"]
# How far a prediction may be off before it counts as refuted: TPOT relative, the others as differences.
TPOT_BOUND, SHARE_BOUND = 0.15, 0.05
MET, MISSED, NOT_MEASURED, NOT_BOUND = "met", "missed", "not measured", "not bound by the link"
_OWN_VARIANTS = ("eager", "grouped_mm", "batched_mm")  # Transformers', of which the last two may round otherwise


def machines_in(folder: Path = MEASURED) -> list[Measured]:
    """Every machine whose tables lie in a folder of that folder, those with a GPU first."""
    found = (path.parent for path in sorted(folder.glob("*/machine.json")) if not path.parent.name.startswith("."))
    return gpus_first([Measured.load(path) for path in found])


def tpot_on_gpu(machines: Sequence[Measured], expert_memory: float) -> pd.DataFrame:
    """Mean TPOT of every system on the first machine with a GPU that served requests, (model, system, tpot_s, machine)."""
    columns = ["model", "system", "tpot_s", "machine"]
    gpu = next((one for one in machines if one.is_gpu and len(one.tables["requests"])), None)
    if gpu is None:
        return pd.DataFrame(columns=columns)
    ours = gpu.tables["requests"].rename(columns={"policy": "system"}).replace({"system": SYSTEM_NAMES})
    tables = [table for table in (ours, gpu.tables["baselines"]) if len(table)]
    rows = pd.concat(tables, ignore_index=True)
    here = rows[rows.expert_memory == expert_memory]
    return here.groupby(["model", "system"], sort=False).tpot_s.mean().reset_index().assign(machine=gpu.title)[columns]


def link_peak(machine: Measured) -> float:
    """Bytes per second of the best way of copying; NaN where none was measured."""
    copies = machine.tables["copies"]
    return float(copies[copies["mode"] != MAPPED].bytes_per_s.max())


def cells_table(machine: Measured) -> pd.DataFrame:
    """Every policy at every memory size, (model, policy, expert_memory) and what was measured and predicted there.

    Returns:
        tpot_s of all decode steps; hit_rate; link_use: bytes moved over what the link moves at its peak in the requests' time;
        each with its extremes over requests as _low and _high. ttft_s, host_stall_s: means of requests, the latter the time that
        inference's thread waited (a GPU that waits by itself is not in it). moved_bytes_per_step: per decode step.
        predicted_tpot_s, error, limit_tpot_s, over_limit: of `Predictions`, NaN where there is none.
    """
    requests = _with_rates(machine)
    cells = requests.groupby(CELL, sort=False)
    sums = cells[["hits", "accesses", "moved_bytes", "num_decode_steps", "decode_s", "duration_s"]].sum()
    found = cells.agg(num_requests=("request", "size"), ttft_s=("ttft_s", "mean"), host_stall_s=("host_stall_s", "mean"))
    found["tpot_s"] = sums.decode_s / sums.num_decode_steps
    found["hit_rate"] = sums.hits / sums.accesses
    found["link_use"] = sums.moved_bytes / sums.duration_s / link_peak(machine)
    for name in ("tpot_s", "hit_rate", "link_use"):
        found[f"{name}_low"], found[f"{name}_high"] = cells[name].min(), cells[name].max()
    found["moved_bytes_per_step"] = sums.moved_bytes / sums.num_decode_steps
    predicted = machine.tables["predictions"].drop(columns=["measured_tpot_s", "link_use"])
    return _merged(found.reset_index(), predicted, "left")


def _with_rates(machine: Measured) -> pd.DataFrame:
    requests = machine.tables["requests"]
    moved = requests.prefetched_bytes + requests.demand_bytes
    decode_s = requests.tpot_s * requests.num_decode_steps
    duration_s = decode_s + requests.ttft_s
    return requests.assign(
        moved_bytes=moved,
        decode_s=decode_s,
        duration_s=duration_s,
        hit_rate=requests.hits / requests.accesses,
        link_use=moved / duration_s / link_peak(machine),
    )


def foretold_table(machine: Measured) -> pd.DataFrame:
    """What was measured of what had been predicted for the machine's card, and how far the predictions were off.

    Returns:
        (model, policy, expert_memory) and foretold_*, * and *_error of tpot_s (relative), hit_rate and link_use (differences);
        an error is positive where too much was predicted.
    """
    names = ["tpot_s", "hit_rate", "link_use"]
    said = read_foretold(machine)[[*CELL, *names]].rename(columns={name: f"foretold_{name}" for name in names})
    both = _merged(cells_table(machine)[[*CELL, *names]], said, "inner")
    both["tpot_s_error"] = both.foretold_tpot_s / both.tpot_s - 1
    for name in names[1:]:
        both[f"{name}_error"] = both[f"foretold_{name}"] - both[name]
    return both


def _merged(left: pd.DataFrame, right: pd.DataFrame, how: Literal["left", "inner"]) -> pd.DataFrame:
    """Joined by cell; an empty table has no types that could be compared."""
    kinds = {"model": "object", "policy": "object", "expert_memory": "float64"}
    return left.astype(kinds).merge(right.astype(kinds), on=CELL, how=how)


@dataclass(frozen=True)
class Aim:
    """What is aimed at: in words, as a test of the number reached, and how that number is written."""

    text: str
    is_met: Callable[[float], bool]
    shown: str
    scale: float = 1.0


BITS = "steps that differ from eager in any bit"
COPIED = "prefetches beside inference, over the link's peak"
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
    """What is aimed at on a GPU and what this machine reached: (model, target, aim, reached, verdict).

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
    """The models of which anything was timed; those that were to be, where nothing was."""
    timed = [str(model) for name in ("requests", "overhead", "baselines") for model in machine.tables[name].model]
    return list(dict.fromkeys(timed or machine.facts["settings"]["models"]))


def shown(target: str, reached: float) -> str:
    """A number reached, as a page says it."""
    return NOT_MEASURED if pd.isna(reached) else AIMS[target].shown.format(AIMS[target].scale * reached)


def _verdict(target: str, reached: float) -> str:
    return MET if AIMS[target].is_met(reached) else MISSED


def checked_steps(machine: Measured) -> tuple[int, int]:
    """How many steps were compared with eager, with delays or with every expert resident, and how many differed in any bit."""
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
    """Models whose bytes at the link's peak take at least half of the limit there, or whose limit nobody has computed."""
    cells = cells_table(machine)
    smallest = [_smallest_on_demand(part) for _, part in cells.groupby("model", sort=False)]
    return [str(one.model.iloc[0]) for one in smallest if len(one) and not (one.link_use * one.over_limit).max() < 0.5]


def _times_faster(machine: Measured, cells: pd.DataFrame, model: str) -> float:
    baselines = machine.tables["baselines"]
    theirs = baselines[(baselines.model == model) & (baselines.system == "accelerate")]
    ours = cells[(cells.policy == "finemoe") & cells.expert_memory.isin(theirs.expert_memory)]
    same = theirs[theirs.expert_memory.isin(ours.expert_memory)]
    return float(same.tpot_s.mean() / ours.tpot_s.mean())


def main() -> None:
    """Renew the pages."""
    from finemoe.artifact.analysis.measured_pages import write_pages

    write_pages()


if __name__ == "__main__":
    main()
