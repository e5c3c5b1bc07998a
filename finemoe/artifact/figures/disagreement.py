"""FineMoE against ProMoE on real routing while one assumption at a time is varied (notebooks/studies/disagreement.ipynb)."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from finemoe.artifact.analysis.latency_figure import system_looks
from finemoe.artifact.plotting import provenance, use_style
from finemoe.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SYSTEMS = ("FineMoE", "ProMoE")
_REFERENCE = "as in Fig. 10"
_UNORDERED = "eviction rule"  # its values have no order, so that no line joins them


def read_table(path: str) -> pd.DataFrame:
    """The rows of `analysis.disagreement.disagreement_table` from a CSV; `value` stays text. Relative paths start at the root."""
    table = pd.read_csv(ROOT / path, keep_default_na=False, na_values=["nan"])
    numbers = ["tpot_s", "tpot_s_low", "tpot_s_high", "hit_rate"]
    return table.assign(**{name: table[name].astype(float) for name in numbers})


def draw(table: pd.DataFrame) -> "Figure":
    """TPOT of both systems, one panel for each assumption.

    Args:
        table: as from `read_table`.
    """
    import matplotlib.pyplot as plt

    use_style()
    reference = table[table.assumption == _REFERENCE].set_index("system").tpot_s
    varied = [name for name in dict.fromkeys(table.assumption) if name != _REFERENCE]
    fig, axes = plt.subplots(1, len(varied), figsize=(2.7 * len(varied), 3), squeeze=False)
    for axis, assumption in zip(axes[0], varied, strict=True):
        _draw_assumption(axis, table[table.assumption == assumption], reference, is_joined=assumption != _UNORDERED)
        axis.set(xlabel=assumption, ylim=(0, None))
    axes[0][0].set_ylabel("TPOT (ms)")
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    fig.legend(handles.values(), list(handles), loc="outside upper center", ncols=4)
    routing = "real routing of gpt-oss-20b, 6 x RTX 3090, 25 % of the experts"
    provenance(fig, "simulated", routing, "whiskers: 95 % over requests")
    return fig


def _draw_assumption(axis: "Axes", part: pd.DataFrame, reference: "pd.Series[float]", is_joined: bool) -> None:
    """Values of one assumption; a system that it does not concern is a dashed line."""
    values, looks = list(dict.fromkeys(part.value)), system_looks()
    for name in _SYSTEMS:
        line, color = part[part.system == name].set_index("value").reindex(values), looks[name]["color"]
        if line.tpot_s.notna().any():
            errors = [1e3 * (line.tpot_s - line.tpot_s_low), 1e3 * (line.tpot_s_high - line.tpot_s)]
            look = {"color": color, "marker": looks[name]["marker"], "linestyle": "-" if is_joined else ""}
            axis.errorbar(values, 1e3 * line.tpot_s, yerr=errors, label=name, **look)
        else:
            axis.axhline(1e3 * reference[name], color=color, linestyle="--", label=f"{name}, {_REFERENCE}")
    axis.tick_params(axis="x", labelsize=7, rotation=30)
