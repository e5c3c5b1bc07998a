"""The tables and claims that come with the project, and what a claim needs where a table holds less than it was made from.

The requests behind the miniatures' latencies are not shipped, only means with intervals. They give the gains, and outer bounds of
the paired intervals. Real routing is shipped request by request.
"""

from collections.abc import Sequence

import pandas as pd

from finemoe.artifact.claims import Claim
from finemoe.artifact.verdicts.gains import REPORTED_GAINS, gains_table
from finemoe.artifact.verdicts.kinds import REAL
from finemoe.paths import DATA, REFERENCE_FIGURES

PANEL = ("model", "dataset")


def figure_table(stem: str) -> pd.DataFrame:
    """The shipped table behind a figure."""
    return pd.read_csv(REFERENCE_FIGURES / f"{stem}.csv")


def real_requests(name: str = "simulated", **wanted: object) -> pd.DataFrame:
    """The shipped requests of gpt-oss-20b that have these values."""
    table = pd.read_csv(DATA / "reference" / f"{name}_gpt_oss.csv")
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def miniatures(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.model != REAL]


def shipped_claim(id_: str) -> dict[str, str]:
    """What became of a claim, as shipped."""
    table = pd.read_csv(REFERENCE_FIGURES / "claims.csv").set_index("id", drop=False)
    return {name: str(table.loc[id_, name]) for name in ("id", "verdict", "reproduced", "why")}


def outcome(claim: Claim) -> dict[str, str]:
    """The same of a claim just made."""
    return {name: getattr(claim, name) for name in ("id", "verdict", "reproduced", "why")}


def shipped_gains(means: pd.DataFrame, requests: pd.DataFrame, by: Sequence[str] = PANEL) -> pd.DataFrame:
    """Rows as of `gains_table`: the miniatures' from means, those of real routing from requests."""
    rows = []
    for values, part in miniatures(means).groupby(list(by), sort=False):
        systems = part.set_index("system")
        for quantity, reported in REPORTED_GAINS.items():
            for baseline in reported:
                gain = _gain_of_means(systems.loc["FineMoE"], systems.loc[baseline], quantity)
                named = {"quantity": quantity, "baseline": baseline, "reported": reported[baseline]}
                rows.append(dict(zip(by, values, strict=True)) | named | gain)
    real = gains_table(requests, by=by) if len(requests) else pd.DataFrame()
    return pd.concat([pd.DataFrame(rows), real], ignore_index=True)


def _gain_of_means(ours: pd.Series, theirs: pd.Series, quantity: str) -> dict[str, float]:
    """A gain, and its extremes for means anywhere in their intervals."""
    sign = -1 if quantity == "hit_rate" else 1
    best = 1 - ours[f"{quantity}_low"] / theirs[f"{quantity}_high"]
    worst = 1 - ours[f"{quantity}_high"] / theirs[f"{quantity}_low"]
    gain = sign * (1 - ours[quantity] / theirs[quantity])
    return {"gain": gain, "low": min(sign * best, sign * worst), "high": max(sign * best, sign * worst)}


def shipped_requests(means: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """For values without intervals: every mean of the miniatures as one request, and the requests of real routing."""
    stand_in = miniatures(means).assign(num_decode_steps=1, hits=means.hit_rate, accesses=1.0)
    return pd.concat([stand_in, requests], ignore_index=True)
