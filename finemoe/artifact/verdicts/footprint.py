"""The claim on latency and memory: Fig. 1b."""

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import reduction
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import FLOOR, SYSTEM, gains_table
from finemoe.artifact.verdicts.kinds import entries_of


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
