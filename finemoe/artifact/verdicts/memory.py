"""The claim on the size of the expert cache: Fig. 12."""

import pandas as pd

from finemoe.artifact.analysis.latency import BASELINES
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import exceptions_in
from finemoe.artifact.verdicts.kinds import REAL, panel_of, panels_of

REPORTED_AT_6_GB = dict(zip(BASELINES, (0.36, 0.25, 0.16, 0.29), strict=True))
_CLOSED = 0.02  # a gap of at most this share counts as closed


def cache_limit_tests(tpot: pd.DataFrame) -> pd.DataFrame:
    """FineMoE's TPOT against every baseline's at the smallest and at the largest cache that all models have.

    Args:
        tpot: rows of TPOT as `gains_table` by model, dataset and cache_limit_gb.
    Returns:
        The rows at these two sizes with is_ahead, whether the whole paired interval is above zero, and is_closed, whether the gap
        is at most 2 %.
    """
    shared = set.intersection(*(set(part.cache_limit_gb) for _, part in tpot.groupby("model")))
    ends = tpot[tpot.cache_limit_gb.isin([min(shared), max(shared)])]
    return ends.assign(is_ahead=ends.low > 0, is_closed=ends.gain.abs() <= _CLOSED)


def cache_limit_claim(tests: pd.DataFrame, floor: str = "") -> Claim:
    """At 6 GB FineMoE's TPOT is lowest, and the gaps close as memory grows.

    Args:
        tests: as `cache_limit_tests` returns them. floor: what `against_on_demand` returns.
    """
    smallest, largest = tests.cache_limit_gb.min(), tests.cache_limit_gb.max()
    first, last = (tests[tests.cache_limit_gb == limit] for limit in (smallest, largest))
    real = first.model == REAL
    lowest = {name: part.groupby(["model", "dataset"], sort=False).is_ahead.all() for name, part in panels_of(first)}
    return Claim.judged(
        [Statement.of(f"TPOT the lowest at {smallest:g} GB", name, flags) for name, flags in lowest.items()]
        + [Statement.of(f"a gap closed at {largest:g} GB", name, part.is_closed) for name, part in panels_of(last)],
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
        panel=panel_of(tests),
        executor="simulated",
        why=f"At {smallest:g} GB FineMoE is ahead in {int(first.is_ahead.sum())} of {len(first)} comparisons, on real routing in "
        f"{int(first.is_ahead[real].sum())} of {int(real.sum())}. {exceptions_in(first[~first.is_ahead])} At {largest:g} GB the "
        f"gap is at most {_CLOSED:.0%} in {int(last.is_closed.sum())} of {len(last)}; what is left is the others' synchronous "
        "work." + (f" {floor}" if floor else ""),
    )
