"""What was measured and predicted of every policy at every memory size: one row a cell."""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from finemoe.artifact.analysis.latency import SHOWN_SYSTEMS
from finemoe.artifact.machines.foretold import read_foretold
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.schema import MAPPED

SYSTEM_NAMES = {system.policy: name for name, system in SHOWN_SYSTEMS.items()}
CELL = ["model", "policy", "expert_memory"]
# How far a prediction may be off before it counts as refuted: TPOT relative, the others as differences.
TPOT_BOUND, SHARE_BOUND = 0.15, 0.05


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
