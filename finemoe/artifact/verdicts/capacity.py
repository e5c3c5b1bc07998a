"""The claim on the store's capacity: Fig. 16a."""

from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.claims import Claim, Statement


def gains_by_doubling(similarity: pd.DataFrame, knee: int = 1000) -> pd.DataFrame:
    """What a doubling of C adds to the similarity on average, up to the knee and from there on.

    Args:
        similarity: rows of `analysis.capacity.similarity_table` with model and dataset.
    Returns:
        Rows (model, dataset, search, before, after, is_rising, is_flatter); is_flatter: after is at most half of before.
    """
    rows = []
    for (model, dataset, search), part in similarity.groupby(["model", "dataset", "search"], sort=False):
        line = part.set_index("capacity").similarity.sort_index()
        middle = max(capacity for capacity in line.index if capacity <= knee)
        parts = {"before": line.loc[:middle], "after": line.loc[middle:]}
        gains = {name: _per_doubling(values) for name, values in parts.items()}
        rows.append({"model": model, "dataset": dataset, "search": search, **gains})
    table = pd.DataFrame(rows)
    return table.assign(is_rising=table.before > 0, is_flatter=table.after <= table.before / 2)


def capacity_claim(doubling: pd.DataFrame) -> Claim:
    """Steep to 1 K, flat after.

    Args:
        doubling: as `gains_by_doubling` returns it.
    """
    mean = doubling.groupby("search", sort=False)[["before", "after"]].mean()
    return Claim.judged(
        [
            Statement.of("a doubling adds something before 1 K", "miniatures", doubling.is_rising),
            Statement.of("at most half as much after it", "miniatures", doubling.is_flatter[doubling.after.notna()]),
        ],
        id="F16a",
        artefact="Fig. 16a",
        claim="Similarity of the best match rises steeply with the store's capacity up to 1 K maps and is flat after",
        reported="steep to 1 K, flat after; no number",
        reproduced="per doubling of C, before and after 1 K: "
        + "; ".join(f"{row.Index} {_gain(row.before)} and {_gain(row.after)}" for row in mean.itertuples()),
        panel="miniatures",
        executor="recorded",
        why=f"A doubling adds something before 1 K in {int(doubling.is_rising.sum())} of {len(doubling)} series, and at most "
        f"half as much after it in {int(doubling.is_flatter.sum())}. Flat means at most half the slope.",
    )


def _per_doubling(line: "pd.Series[float]") -> float:
    doublings = np.log2(line.index[-1] / line.index[0]) if len(line) > 1 else 0.0
    return float((line.iloc[-1] - line.iloc[0]) / doublings) if doublings else float("nan")


def _gain(value: Any) -> str:
    return "not run" if np.isnan(value) else f"{value:+.3f}"
