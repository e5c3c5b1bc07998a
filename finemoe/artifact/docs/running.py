"""Tables of docs/running.md: what the published models take, and what a warm-up profile is worth."""

import pandas as pd

from finemoe.artifact.docs.tables import groups, percent, rows, shipped
from finemoe.artifact.markdown import pipe_table
from finemoe.artifact.pipeline.warm_starts import STARTS
from finemoe.units import format_bytes

_SIZES, _STARTS = "reference/running_sizes.csv", "reference/warm_starts_counted.csv"
_MIB, _GIB = 1 << 20, 1 << 30


def running_blocks() -> dict[str, str]:
    """The page's tables, by the name of their marks."""
    return {"sizes": _sizes(), "warm starts": _starts()}


def _sizes() -> str:
    lines = [
        {
            "model": f"`{one.model}`",
            "experts in": one.expert_format,
            "download": format_bytes(one.download_bytes),
            "all experts": format_bytes(one.all_experts_bytes),
            "other weights": format_bytes(one.other_bytes),
            "keys and values of 1,000 tokens": format_bytes(1000 * one.kv_bytes_per_token),
            "smallest `--expert-memory`": f"`{_rounded(one.smallest_expert_memory_bytes, _MIB, 'MiB', True)}`",
            "largest on an 8 GB laptop GPU": f"`{_rounded(one.largest_expert_memory_bytes, _GIB, 'GiB', False)}`",
        }
        for one in rows(shipped(_SIZES))
    ]
    return pipe_table(pd.DataFrame(lines)) + "\n"


def _rounded(num_bytes: int, unit: int, name: str, is_up: bool) -> str:
    """A value for `--expert-memory` with one decimal: never less than the smallest, never more than the largest."""
    tenths = -(-10 * num_bytes // unit) if is_up else 10 * num_bytes // unit
    return f"{tenths / 10:g}{name}"


def _starts() -> str:
    table, lines = shipped(_STARTS), []
    for (model, system), part in groups(table, "model", "system"):
        cells = {}
        for start in STARTS:
            mine = part[part["start"] == start]
            cells[f"{start}: hits"] = percent(float(mine["hits"].sum() / mine["accesses"].sum()))
            cells[f"{start}: loaded on demand"] = format_bytes(float(mine["demand_bytes"].mean()))
        lines.append({"model": model, "policy": system, **cells, "profile": format_bytes(int(part["profile_bytes"].iloc[0]))})
    return pipe_table(pd.DataFrame(lines)) + "\n"
