"""Measured and predicted values of every policy at every memory size: one row per cell."""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from finemoe.artifact.analysis.latency import SHOWN_SYSTEMS
from finemoe.artifact.machines.foretold import read_foretold
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.schema import MAPPED

SYSTEM_NAMES = {system.policy: name for name, system in SHOWN_SYSTEMS.items()}
CELL = ["model", "policy", "expert_memory"]
# A prediction that is off by more than this is refuted: TPOT relative, the others as differences.
TPOT_BOUND, SHARE_BOUND = 0.15, 0.05


def tpot_on_gpu(machines: Sequence[Measured], expert_memory: float) -> pd.DataFrame:
    """TPOT of every system on the first machine with a GPU that served requests.

    Returns:
        (model, system, tpot_s, tpot_s_low, tpot_s_high, machine): the mean over requests in seconds, with its extremes.
    """
    columns = ["model", "system", "tpot_s", "tpot_s_low", "tpot_s_high", "machine"]
    gpu = next((one for one in machines if one.is_gpu and len(one.tables["requests"])), None)
    if gpu is None:
        return pd.DataFrame(columns=columns)
    ours = gpu.tables["requests"].rename(columns={"policy": "system"}).replace({"system": SYSTEM_NAMES})
    tables = [table for table in (ours, gpu.tables["baselines"]) if len(table)]
    rows = pd.concat(tables, ignore_index=True)
    tpot = rows[rows.expert_memory == expert_memory].groupby(["model", "system"], sort=False).tpot_s
    found = tpot.agg(tpot_s="mean", tpot_s_low="min", tpot_s_high="max")
    return found.reset_index().assign(machine=gpu.title)[columns]


def link_peak(machine: Measured) -> float:
    """Bandwidth of the best way of copying in bytes per second; NaN if none was measured."""
    copies = machine.tables["copies"]
    return float(copies[copies["mode"] != MAPPED].bytes_per_s.max())


def cells_table(machine: Measured) -> pd.DataFrame:
    """Measurements and predictions of every policy at every memory size, one row per (model, policy, expert_memory).

    Returns:
        tpot_s over all decode steps; hit_rate; link_use (bytes moved, over what the link could move at its peak in the requests'
        time); each with its extremes over requests as _low and _high. ttft_s and host_stall_s are means over requests; the latter
        is the time that inference's thread waited (excluding a GPU that waits by itself). moved_bytes_per_step is per decode
        step. predicted_tpot_s, error, limit_tpot_s and over_limit are those of `Predictions`, or NaN without a prediction.
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
    """Measurements of the cells that were predicted for the machine's card, and the errors of the predictions.

    Returns:
        (model, policy, expert_memory) and foretold_*, * and *_error of tpot_s (relative), hit_rate and link_use (differences); an
        error is positive if the prediction is too high.
    """
    names = ["tpot_s", "hit_rate", "link_use"]
    predicted = read_foretold(machine)[[*CELL, *names]].rename(columns={name: f"foretold_{name}" for name in names})
    both = _merged(cells_table(machine)[[*CELL, *names]], predicted, "inner")
    both["tpot_s_error"] = both.foretold_tpot_s / both.tpot_s - 1
    for name in names[1:]:
        both[f"{name}_error"] = both[f"foretold_{name}"] - both[name]
    return both


def _merged(left: pd.DataFrame, right: pd.DataFrame, how: Literal["left", "inner"]) -> pd.DataFrame:
    """Join by cell; an empty table has no types to compare."""
    kinds = {"model": "object", "policy": "object", "expert_memory": "float64"}
    return left.astype(kinds).merge(right.astype(kinds), on=CELL, how=how)
