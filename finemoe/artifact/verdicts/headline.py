"""The headline: FineMoE's mean gains over the baselines."""

import numpy as np
import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import NAMES, REPORTED_GAINS, mean_gains
from finemoe.artifact.verdicts.kinds import panel_of, panels_of

REPORTED_HEADLINE = {"latency": 0.47, "hit rate": 0.39}


def headline_claim(gains: pd.DataFrame) -> Claim:
    """The means over baselines: latency (eight cuts) and hit rate (three gains)."""
    found = {name: _headline(part) for name, part in panels_of(gains)}
    return Claim.judged(
        [
            Statement.of(f"{what} better by {reported:.0%} at least", name, [values[what] >= reported])
            for name, values in found.items()
            for what, reported in REPORTED_HEADLINE.items()
        ],
        id="H",
        artefact="headline",
        claim="Over the baselines FineMoE cuts latency by 47 % and raises the hit rate by 39 % on average",
        reported=_shares(REPORTED_HEADLINE),
        reproduced="; ".join(f"{name}: {_shares(values)}" for name, values in found.items()),
        panel=panel_of(gains),
        executor="simulated",
        why="Means over the baselines of the gains of Fig. 10 (on real routing: TPOT only, three baselines for latency and two "
        "for hits). The eight cuts that the paper prints average 48 %, its three gains 40 %.",
    )


def headline_table(gains: pd.DataFrame) -> pd.DataFrame:
    """The headline's two means and what they are means of, here and in the paper.

    Returns:
        Rows (gain of, panel, share), first the two means.
    """
    rows = []
    for panel, found in [("the paper", None), *panels_of(gains)]:
        by_baseline = REPORTED_GAINS if found is None else mean_gains(found)
        headline = REPORTED_HEADLINE if found is None else _headline(found)
        rows += [(f"{what}, mean", panel, share) for what, share in headline.items()]
        rows += [
            (f"{NAMES[quantity]} over {baseline}", panel, share)
            for quantity, shares in by_baseline.items()
            for baseline, share in shares.items()
        ]
    table = pd.DataFrame(rows, columns=["gain of", "panel", "share"])
    return table.iloc[np.argsort(~table["gain of"].str.endswith("mean"), kind="stable")].reset_index(drop=True)


def _headline(gains: pd.DataFrame) -> dict[str, float]:
    mean = gains.groupby(["quantity", "baseline"], sort=False).gain.mean().reset_index()
    is_hits = mean.quantity == "hit_rate"
    return {"latency": float(mean[~is_hits].gain.mean()), "hit rate": float(mean[is_hits].gain.mean())}


def _shares(values: dict[str, float]) -> str:
    return f"latency {-values['latency']:+.0%}, hit rate {values['hit rate']:+.0%}"
