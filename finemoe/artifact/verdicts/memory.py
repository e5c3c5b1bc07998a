"""The claims on memory: Figs. 1b and 12."""

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import BASELINES, reduction
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import FLOOR, REAL, SYSTEM, entries_of, exceptions_in, gains_table, panel_of, panels_of

REPORTED_AT_6_GB = dict(zip(BASELINES, (0.36, 0.25, 0.16, 0.29), strict=True))
_CLOSED = 0.02  # a gap of at most this share counts as closed


def cache_limit_claim(tpot: pd.DataFrame, floor: str = "") -> Claim:
    """At 6 GB FineMoE's TPOT is lowest, and the gaps close as memory grows.

    Args:
        floor: what `against_on_demand` returns.
    """
    shared = set.intersection(*(set(part.cache_limit_gb) for _, part in tpot.groupby("model")))
    smallest, largest = min(shared), max(shared)
    first, last = (tpot[tpot.cache_limit_gb == limit] for limit in (smallest, largest))
    is_ahead, is_closed = first.low > 0, last.gain.abs() <= _CLOSED
    real = first.model == REAL
    lowest = {name: part.groupby(["model", "dataset"], sort=False).low.min() > 0 for name, part in panels_of(first)}
    return Claim.judged(
        [Statement.of(f"TPOT the lowest at {smallest:g} GB", name, flags) for name, flags in lowest.items()]
        + [Statement.of(f"a gap closed at {largest:g} GB", name, part.gain.abs() <= _CLOSED) for name, part in panels_of(last)],
        id="F12",
        artefact="Fig. 12",
        claim="With a small expert cache FineMoE's TPOT is the lowest; the gaps close as memory grows",
        reported=", ".join(f"{baseline} {-share:.0%}" for baseline, share in REPORTED_AT_6_GB.items()) + " at 6 GB",
        reproduced="; ".join(
            f"{name}: "
            + ", ".join(
                f"{baseline} {-share:+.0%}" for baseline, share in part.groupby("baseline", sort=False).gain.mean().items()
            )
            for name, part in panels_of(first)
        )
        + f" at {smallest:g} GB",
        panel=panel_of(tpot),
        executor="simulated",
        why=f"At {smallest:g} GB FineMoE is ahead in {int(is_ahead.sum())} of {len(first)} comparisons, on real routing in "
        f"{int((is_ahead & real).sum())} of {int(real.sum())}. {exceptions_in(first[~is_ahead])} At {largest:g} GB the gap is at "
        f"most {_CLOSED:.0%} in {int(is_closed.sum())} of {len(last)}; what is left is the others' synchronous work."
        + (f" {floor}" if floor else ""),
    )


def footprint_tests(requests: pd.DataFrame, summary: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """FineMoE against the other offloading systems and against No-offload.

    Args:
        requests: rows as `analysis.latency.latency_table` gives them, at one size of the expert cache.
        summary: rows as `figures.f1b.footprints` gives them, at the same size.
    Returns:
        One row per (model, dataset): whether FineMoE's TPOT is below that of every baseline and of loading on demand, with the
        whole paired intervals; its memory as a share of No-offload's; and its TPOT as a multiple of No-offload's.
    """
    gains = gains_table(requests, seed)
    is_fastest = gains[gains.quantity == "tpot_s"].groupby(["model", "dataset"], sort=False).low.min() > 0
    groups = requests.groupby(["model", "dataset"], sort=False)
    is_fastest &= np.array([_is_below(part, FLOOR, seed) for _, part in groups])
    ours, all_ = (summary[summary.system == name].set_index(["model", "dataset"]) for name in (SYSTEM, "No-offload"))
    memory, slowdown = ours.total_gb / all_.total_gb, ours.tpot_s / all_.tpot_s
    return pd.DataFrame({"is_fastest": is_fastest, "memory": memory, "slowdown": slowdown}).loc[memory.index]


def footprint_claim(requests: pd.DataFrame, summary: pd.DataFrame, seed: int = 0) -> Claim:
    """FineMoE alone is low on both axes: fastest of the offloading systems, little memory, not much slower than No-offload.

    Args:
        requests, summary: as `footprint_tests` takes them.
    """
    tests = footprint_tests(requests, summary, seed)
    is_small, is_quick = tests.memory < 0.5, tests.slowdown < 2
    return Claim.judged(
        [
            Statement.of("the fastest offloading system", "miniatures", tests.is_fastest),
            Statement.of("less than half of No-offload's memory", "miniatures", is_small),
            Statement.of("less than twice No-offload's TPOT", "miniatures", is_quick),
        ],
        id="F1b",
        artefact="Fig. 1b",
        claim="FineMoE alone has both a low memory footprint and a low latency",
        reported="FineMoE alone low on both; no number",
        reproduced="; ".join(
            f"{model}/{dataset} {row.memory:.0%} of No-offload's memory at {row.slowdown:.1f} times its TPOT"
            for (model, dataset), row in entries_of(tests)
        ),
        panel="miniatures' routing",
        executor="simulated",
        why=f"FineMoE is the fastest offloading system (whole intervals) in {int(tests.is_fastest.sum())} of {len(tests)} panels "
        f"at nearly the same memory; less than half of No-offload's memory and less than twice its TPOT in "
        f"{int((is_small & is_quick).sum())}. On real routing it is not the fastest, see F10.",
    )


def _is_below(requests: pd.DataFrame, other: str, seed: int) -> bool:
    """Whether FineMoE's TPOT is below another system's, with the whole paired interval."""
    theirs, ours = (requests[requests.system == name] for name in (other, SYSTEM))
    return bool(reduction(theirs, ours, "tpot_s", seed).low > 0)
