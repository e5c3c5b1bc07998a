"""What a machine measured, in one page of text for whoever stands beside it."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from finemoe.measured import LAUNCHING, MAPPED, PREFETCHED, Measured
from finemoe.units import format_bytes


def summary(machine: Measured) -> str:
    """Every table that has rows, in a few lines each."""
    facts = machine.facts
    lines = [f"{machine.title}: torch {facts['torch']}, transformers {facts['transformers']}, Python {facts['python']}"]
    lines += [
        f"  call of {one['began']}: {one['parts']} parts in {one['seconds']} s, code {one['code']}" for one in facts["calls"]
    ]
    for section in (_correctness, _arenas, _link, _tpot, _chunks, _overhead, _baselines, _missing):
        lines += section(machine.tables)
    return "\n".join(lines)


def _correctness(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    if len(checked := tables["correctness"]):
        yield f"bits: {checked.num_different_steps.sum()} of {checked.num_steps.sum()} steps differ from eager"


def _arenas(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    for one in _rows(tables["arenas"]):
        share = one.pinned_bytes / one.num_bytes
        yield f"host memory: {format_bytes(one.num_bytes)} in {one.seconds:.2f} s, {share:.0%} page-locked"


def _link(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    copies = tables["copies"]
    copied = copies[copies["mode"] != MAPPED]
    if copied.empty:
        return
    peak = copied.bytes_per_s.max()
    yield f"link: {peak / 1e9:.1f} GB/s at its best"
    for one in _rows(copies[copies["mode"].isin([PREFETCHED, MAPPED])]):
        yield f"  {one.mode}, inference {one.main_thread}: {one.bytes_per_s / 1e9:.1f} GB/s ({one.bytes_per_s / peak:.0%})"
    best = copied[copied.main_thread == LAUNCHING].sort_values("bytes_per_s").tail(1)
    for one in _rows(best):
        size = format_bytes(one.chunk_bytes)
        yield f"  best beside inference: chunks of {size}, {one.chunks_in_flight} at a time, {one.bytes_per_s / 1e9:.1f} GB/s"


def _tpot(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    for model, mine in tables["requests"].groupby("model", sort=False):
        cells: Any = mine.groupby(["policy", "expert_memory"], sort=False)
        sums = cells[["hits", "accesses"]].sum()
        shown = pd.DataFrame({"TPOT ms": 1e3 * cells.tpot_s.mean(), "hits %": 100 * sums.hits / sums.accesses}).reset_index()
        yield f"{model}:"
        table = shown.pivot(index="policy", columns="expert_memory", values=["TPOT ms", "hits %"])
        yield table.loc[list(dict.fromkeys(shown.policy))].round(2).to_string(na_rep="")


def _chunks(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    groups: Any = tables["chunks"].groupby(["model", "chunk_bytes"])
    for (model, chunk), mine in groups:
        yield f"{model}, prefetches in chunks of {format_bytes(chunk)}: TPOT {1e3 * mine.tpot_s.mean():.2f} ms"


def _overhead(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    for model, mine in tables["overhead"].groupby("model", sort=False):
        seconds = mine.groupby("variant", sort=False).seconds_per_token.median()
        ratios = ", ".join(f"{variant} {one / seconds['eager']:.2f}" for variant, one in seconds.items() if variant != "eager")
        yield f"{model}, all experts resident: eager {1e3 * seconds['eager']:.2f} ms; over eager: {ratios}"


def _baselines(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    for one in _rows(tables["baselines"]):
        yield f"{one.model} under {one.system} at {one.expert_memory:.0%}: TPOT {1e3 * one.tpot_s:.0f} ms"


def _missing(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    for reason, some in tables["skipped"].groupby("reason", sort=False):
        names = [f"{one.group} {one.part}" for one in _rows(some)]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"missing ({reason}): {shown}"


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    return table.itertuples()
