"""FineMoE against loading on demand over a paced link (notebooks/studies/paced_link.ipynb)."""

from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.machines.cells import SYSTEM_NAMES
from finemoe.artifact.pipeline.noise import FASTER, SLOWER, in_words, judged_pairs
from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POLICIES = ("on-demand", "finemoe")


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """Whether FineMoE is faster, cell by cell; see `pipeline.noise.judged_pairs`."""
    return judged_pairs(table, ["model", "expert_memory"], "finemoe", "on-demand")


def draw(table: pd.DataFrame, seed: int = 0) -> "Figure":
    """TPOT by expert memory, one panel for each model, with the verdict below each pair of bars.

    Args:
        table: rows of `pipeline.paced_link.paced_table` with the columns load_ms and machine. seed: of the bars' bootstrap.
    """
    import matplotlib.pyplot as plt

    use_style()
    names, verdicts = list(dict.fromkeys(table.model)), judged(table)
    fig, axes = plt.subplots(1, len(names), figsize=(max(5.2, 2.7 * len(names)), 2.9), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        _draw_model(axis, table[table.model == name], verdicts[verdicts.model == name], seed)
        axis.set_title(model_title(name).replace(" (", "\n("))
    axes[0][0].set_ylabel("TPOT (ms)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    for axis in axes[0]:
        axis.get_legend().remove()
    names_shown = [SYSTEM_NAMES[label] for label in labels]
    fig.legend(handles, names_shown, loc="outside upper center", ncols=2, title=f"FineMoE: {in_words(verdicts, FASTER, SLOWER)}")
    served = f"requests served: {table.request.nunique()}, in {table['round'].nunique()} rounds"
    load = f"one expert takes {table.load_ms.iloc[0]:g} ms"
    provenance(fig, "paced", table.machine.iloc[0], load, served, "95 % intervals over both")
    return fig


def _draw_model(axis: "Axes", table: pd.DataFrame, verdicts: pd.DataFrame, seed: int) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    look = {"hue": "policy", "palette": series_styles(POLICIES)["palette"], "edgecolor": "black"}
    sns.barplot(table, x="expert_memory", y="tpot_ms", ax=axis, errorbar=("ci", 95), seed=seed, **look)
    for bars, hatch in zip(axis.containers, ["", "//"], strict=True):
        plt.setp(bars, hatch=hatch)
    shown = verdicts.set_index("expert_memory").verdict.sort_index()
    axis.set_xticks(range(len(shown)), [f"{float(str(share)):.0%}\n{verdict}" for share, verdict in shown.items()])
    axis.set(xlabel="expert memory (share); FineMoE is", ylabel="")
