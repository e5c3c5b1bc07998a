"""The claim on batch sizes: Fig. 16b."""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import NAMES, exceptions_in
from finemoe.artifact.verdicts.kinds import entries_of


def batch_tests(gains: pd.DataFrame) -> "pd.Series[bool]":
    """By dataset, quantity and batch size: whether FineMoE is below every baseline with the whole paired interval.

    Args:
        gains: as `gains_table` by model, dataset and batch_size.
    """
    latency = gains[gains.quantity != "hit_rate"]
    least: pd.Series[float] = latency.groupby(["dataset", "quantity", "batch_size"], sort=False).low.min()
    return (least > 0).rename("lowest")


def batch_claim(gains: pd.DataFrame) -> Claim:
    """FineMoE is lowest at most batch sizes.

    Args:
        gains: as `batch_tests` takes them.
    """
    latency, lowest = gains[gains.quantity != "hit_rate"], batch_tests(gains)
    won: dict[tuple[str, str], list[str]] = {}
    for (dataset, quantity, batch_size), is_lowest in entries_of(lowest):
        won.setdefault((dataset, quantity), []).extend([str(batch_size)] * is_lowest)
    at_most = lowest.groupby(level=["dataset", "quantity"], sort=False).mean() > 0.5
    return Claim.judged(
        [Statement.of("lowest at most batch sizes", "Mixtral miniature", at_most)],
        id="F16b",
        artefact="Fig. 16b",
        claim="FineMoE's TTFT and TPOT are the lowest at most batch sizes from 1 to 8",
        reported="FineMoE lowest mostly; no number",
        reproduced="; ".join(
            f"{dataset}, {NAMES[quantity]}: lowest at {', '.join(sizes) or 'none'}" for (dataset, quantity), sizes in won.items()
        ),
        panel="Mixtral miniature's routing",
        executor="simulated",
        why=f"FineMoE is below every baseline with the whole paired interval in "
        f"{int(lowest.sum())} of {len(lowest)} cells of "
        f"dataset, quantity and batch size; most batch sizes are more than half of them. "
        f"{exceptions_in(latency[latency.low <= 0])}",
    )
