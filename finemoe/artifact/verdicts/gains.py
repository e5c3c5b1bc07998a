"""FineMoE's gains over every baseline, and those that the paper reports."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import BASELINES, reduction
from finemoe.artifact.verdicts.kinds import entries_of, panels_of

SYSTEM, FLOOR = "FineMoE", "on-demand (LRU)"
# By what share FineMoE is below (TTFT, TPOT) or above (hit rate) each baseline (Fig. 10).
REPORTED_GAINS = {
    "ttft_s": dict(zip(BASELINES, (0.74, 0.67, 0.56, 0.53), strict=True)),
    "tpot_s": dict(zip(BASELINES, (0.46, 0.38, 0.27, 0.22), strict=True)),
    "hit_rate": dict(zip(BASELINES[1:], (0.14, 0.37, 0.68), strict=True)),
}
NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "hit_rate": "hit rate"}


def gains_table(requests: pd.DataFrame, seed: int = 0, by: Sequence[str] = ("model", "dataset")) -> pd.DataFrame:
    """FineMoE against every baseline, group by group.

    Args:
        requests: rows as `analysis.latency.latency_table` gives them, with the columns `by`.
    Returns:
        Rows (*by, quantity, baseline, gain, low, high, reported); gain is the share by which TTFT and TPOT are lower, the hit
        rate higher. What was not recorded has no row.
    """
    rows = []
    for key, part in requests.groupby(list(by), sort=False):
        ours = part[part.system == SYSTEM]
        for quantity, reported in REPORTED_GAINS.items():
            for baseline in reported:
                theirs = part[part.system == baseline]
                if len(theirs) and (quantity == "hit_rate" or ours[quantity].notna().any()):
                    gain, low, high = reduction(theirs, ours, quantity, seed)
                    gain, low, high = (-gain, -high, -low) if quantity == "hit_rate" else (gain, low, high)
                    found = {"gain": gain, "low": low, "high": high, "reported": reported[baseline]}
                    rows.append({**dict(zip(by, key, strict=True)), "quantity": quantity, "baseline": baseline, **found})
    return pd.DataFrame(rows)


def against_on_demand(requests: pd.DataFrame, seed: int = 0) -> str:
    """FineMoE compared with the floor that the paper leaves out, loading on demand with LRU, in words."""
    changes = []
    for name, part in panels_of(requests):
        groups = [group for _, group in part.groupby(["model", "dataset"], sort=False)]
        lower = [reduction(one[one.system == FLOOR], one[one.system == SYSTEM], "tpot_s", seed).value for one in groups]
        changes.append(f"{-np.mean(lower):+.0%} on {name}")
    found = ", ".join(changes)
    return f"Compared with loading on demand under LRU, which the paper does not show, FineMoE's TPOT changes by {found}."


def mean_gains(gains: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean gain over models and datasets, by quantity and baseline."""
    mean = gains.groupby(["quantity", "baseline"], sort=False).gain.mean()
    return {str(quantity): mean[quantity].to_dict() for quantity in dict.fromkeys(gains.quantity)}


def exceptions_in(behind: pd.DataFrame) -> str:
    """Which baselines are not behind FineMoE, in words."""
    if not len(behind):
        return "No exception."
    counts = behind.groupby(["baseline", "quantity", "model"], sort=False).size()
    return (
        "Not behind FineMoE: "
        + ", ".join(
            f"{baseline} in {NAMES[quantity]} on {model} ({count})" for (baseline, quantity, model), count in entries_of(counts)
        )
        + "."
    )
