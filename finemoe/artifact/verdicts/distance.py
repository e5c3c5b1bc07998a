"""The claim on the prefetch distance: Fig. 15."""

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import reduction
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.kinds import REAL, panel_of, panels_of

REPORTED_DISTANCES = {"mixtral-mini": 3, "qwen-mini": 6, "phi-mini": 4}


def distance_minima(requests: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """At which distance FineMoE's TPOT and TTFT are lowest, for each model and dataset.

    Args:
        requests: FineMoE's rows of `analysis.latency.distance_table`, by model and dataset.
    Returns:
        Rows (model, dataset, best_distance, reported, below_shortest, below_longest, is_inside, best_ttft_distance, shortest,
        longest). below_*: by what share TPOT is lower than at the ends; is_inside: with the whole paired interval at both.
        best_ttft_distance is NaN without prefills.
    """
    rows = []
    for (model, dataset), part in requests.groupby(["model", "dataset"], sort=False):
        by_distance: dict[int, pd.DataFrame] = {
            int(d): part[part.prefetch_distance == d] for d in part.prefetch_distance.unique()
        }
        tpot = {
            d: float((one.tpot_s * one.num_decode_steps).sum() / one.num_decode_steps.sum()) for d, one in by_distance.items()
        }
        best = min(tpot, key=tpot.__getitem__)
        shortest, longest = (reduction(by_distance[end], by_distance[best], "tpot_s", seed) for end in (min(tpot), max(tpot)))
        rows.append(
            {
                "model": model,
                "dataset": dataset,
                "best_distance": best,
                "reported": REPORTED_DISTANCES.get(str(model), np.nan),
                "below_shortest": shortest.value,
                "below_longest": longest.value,
                "is_inside": bool(shortest.low > 0 and longest.low > 0),
                "best_ttft_distance": _best_ttft_distance(by_distance),
                "shortest": min(tpot),
                "longest": max(tpot),
            }
        )
    return pd.DataFrame(rows)


def _best_ttft_distance(by_distance: dict[int, pd.DataFrame]) -> float:
    ttft = {distance: part.ttft_s.mean() for distance, part in by_distance.items() if part.ttft_s.notna().any()}
    return float(min(ttft, key=ttft.__getitem__)) if ttft else np.nan


def distance_claim(minima: pd.DataFrame) -> Claim:
    """TTFT and TPOT have a minimum inside, at 3, 6 and 4."""
    is_near = ~minima.reported.notna() | ((minima.best_distance - minima.reported).abs() <= 1)
    real, has_ttft = minima.model == REAL, minima.best_ttft_distance.notna()
    is_longest = has_ttft & (minima.best_ttft_distance == minima.longest)
    is_at_end = is_longest | (minima.best_ttft_distance == minima.shortest)
    has_reported = minima.reported.notna()
    return Claim.judged(
        [Statement.of("TPOT's minimum inside, clearly below both ends", name, part.is_inside) for name, part in panels_of(minima)]
        + [
            Statement.of("TTFT's minimum inside", "miniatures", ~is_at_end[has_ttft]),
            Statement.of("TPOT's minimum within a layer of the reported", "miniatures", is_near[has_reported]),
        ],
        id="F15",
        artefact="Fig. 15",
        claim="TTFT and TPOT have a minimum at a middle prefetch distance",
        reported="a minimum at 3 (Mixtral), 6 (Qwen) and 4 (Phi)",
        reproduced="; ".join(
            f"{row.model}/{row.dataset} TPOT {row.best_distance} "
            f"({row.below_shortest:.0%} below d = 1, {row.below_longest:.0%} below the longest)"
            + (f", TTFT {row.best_ttft_distance:g}" if is_known else "")
            for row, is_known in zip(minima.itertuples(), has_ttft, strict=True)
        ),
        panel=panel_of(minima),
        executor="simulated",
        why=f"TPOT's minimum lies inside, clearly below both ends, in {int(minima.is_inside.sum())} of {len(minima)} panels "
        f"(real routing: {'yes' if _all(minima.is_inside[real]) else 'no'}), within one layer of the reported distance in "
        f"{int(is_near[~real].sum())} of {int((~real).sum())} miniature panels. TTFT, which real routing does not give, is "
        f"least at the longest distance scanned in {int(is_longest.sum())} of {int(has_ttft.sum())}. No distance was chosen.",
    )


def _all(flags: "pd.Series[bool]") -> bool:
    """Whether all are set, and there are any."""
    return bool(len(flags) and flags.all())
