"""The drawing of docs/generation.md: hit rate by turn of a chat, over a kept cache and from a cold start."""

from typing import TYPE_CHECKING

from finemoe.artifact.machines.cells import SYSTEM_NAMES
from finemoe.artifact.pipeline.chats import SHARES, WAYS
from finemoe.artifact.plotting import model_title, provenance, series_styles
from finemoe.paths import DATA

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CHATS = DATA / "reference" / "chats_counted.csv"
_TITLES = {WAYS[0]: "kept from turn to turn", WAYS[2]: "every turn starts cold"}


def chats_drawing(table: "pd.DataFrame") -> "Figure":
    """Hit rate by turn, one panel for each model; solid lines go on, dashed ones start cold."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    table = table[(table.expert_memory == SHARES[0]) & table.way.isin(_TITLES)]
    table = table.assign(way=table.way.map(_TITLES), system=[SYSTEM_NAMES.get(name, name) for name in table.system])
    systems = list(dict.fromkeys(table.system))
    styles, names = series_styles(systems), list(dict.fromkeys(table.model))
    fig, axes = plt.subplots(1, len(names), figsize=(7.0, 2.5), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        part = table[table.model == name]
        for system, lines in part.groupby("system", sort=False):
            sns.lineplot(
                lines,
                x="turn",
                y="hit_rate",
                style="way",
                style_order=list(_TITLES.values()),
                color=styles["palette"][system],
                marker=styles["markers"][system],
                markeredgecolor="white",
                markeredgewidth=0.5,
                ax=axis,
                legend=False,
            )
        axis.set(title=model_title(name).replace(" (", "\n("), xlabel="turn", ylabel="hit rate", ylim=(0, 1), xticks=range(1, 11))
    _add_legend(fig, systems, styles)
    provenance(fig, str(table.executor.iloc[0]), f"{SHARES[0]:.0%} of the experts in memory", "replies of 16 tokens")
    return fig


def _add_legend(fig: "Figure", systems: list[str], styles: dict[str, dict[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=styles["palette"][name], marker=styles["markers"][name], markeredgecolor="white", label=name)
        for name in systems
    ]
    kept, cold = _TITLES.values()
    handles += [Line2D([], [], color="black", label=kept), Line2D([], [], color="black", linestyle="--", label=cold)]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
