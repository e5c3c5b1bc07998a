"""Hit rate and TPOT of every policy on the live engine (notebooks/stages/3_run_offloading.ipynb)."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESIDENT = "resident"


def draw(counts: pd.DataFrame, times: pd.DataFrame, seed: int = 0) -> "Figure":
    """Bars by policy: expert hit rate, and TPOT.

    Args:
        counts, times: as from `pipeline.offloading.counts_of` and `times_of`; times with the machine. seed: of the bootstrap.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    use_style()
    policies, first = list(dict.fromkeys(counts.policy)), counts.iloc[0]
    fig, axes = plt.subplots(1, 2)
    palette = series_styles(policies)["palette"]
    shared: dict[str, Any] = {"y": "policy", "hue": "policy", "hue_order": policies, "palette": palette, "edgecolor": "black"}
    shared |= {"order": policies, "errorbar": ("ci", 95), "seed": seed, "legend": False}
    sns.barplot(counts, x="hit_rate", ax=axes[0], **shared)
    offloaded = times[times.policy != RESIDENT].assign(tpot_ms=lambda table: table.tpot_s * 1e3)
    sns.barplot(offloaded, x="tpot_ms", ax=axes[1], **shared)
    axes[0].set(xlabel="expert hit rate", ylabel="", title=model_title(first.model), xlim=(0, 1))
    title = f"{first.dataset}, {counts.request.nunique()} requests"
    axes[1].set(xlabel="TPOT (ms)", ylabel="", yticklabels=[], title=title)
    memory = f"{first.expert_memory:.0%} of the experts"
    details = (memory, times.machine.iloc[0], "whiskers: 95 % over requests")
    provenance(fig, "live engine, left counted in line, right measured", *details)
    return fig
