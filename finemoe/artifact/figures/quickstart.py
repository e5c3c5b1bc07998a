"""Hits and misses in every layer of one request (notebooks/tour/1_quickstart.ipynb)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.plotting import model_title, provenance, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = {"hit": ("#0072B2", ""), "late": ("#E69F00", "///"), "miss": ("#d9d9d9", "...")}


def layer_table(reports: Mapping[str, Any]) -> pd.DataFrame:
    """Outcomes of the demanded experts by layer.

    Args:
        reports: an engine's report by policy.
    Returns:
        Rows (layer, policy, hit, late, miss); layers count from 1, the rest are numbers of experts.
    """
    parts = []
    for policy, report in reports.items():
        counts = {"hit": report.layer_hits, "late": report.layer_late, "miss": report.layer_misses}
        parts.append(pd.DataFrame({"layer": range(1, len(report.layer_hits) + 1), "policy": policy, **counts}))
    return pd.concat(parts)


def draw(table: pd.DataFrame, model: str, expert_memory: float, asynchronous: bool = False) -> "Figure":
    """One panel for each policy: demanded experts of a layer, stacked by outcome.

    Args:
        table: as from `layer_table`. model: the name of its folder. expert_memory: share of all routed experts.
        asynchronous: whether search and loads ran next to inference.
    """
    import matplotlib.pyplot as plt

    use_style()
    policies = list(dict.fromkeys(table.policy))
    fig, axes = plt.subplots(1, len(policies), sharey=True, squeeze=False)
    for axis, policy in zip(axes[0], policies, strict=True):
        part = table[table.policy == policy]
        below = 0 * part.hit
        for outcome, (color, hatch) in _LOOKS.items():
            look = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
            axis.bar(part.layer, part[outcome], bottom=below, label=outcome, **look)
            below = below + part[outcome]
        axis.set(xlabel="MoE layer", title=f"{policy}: {part.hit.sum() / below.sum():.0%} hits")
    axes[0][0].set_ylabel("demanded experts")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    way = "search and loads next to inference" if asynchronous else "search and loads in line"
    details = (model_title(model), f"{expert_memory:.0%} of the experts on the device", "last request")
    provenance(fig, f"counted by the live engine, {way}", *details)
    return fig
