"""Table 1: parameters, experts and layers of the three models, as printed in the paper and as counted."""

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.plotting import provenance, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.table import Table

# Numbers of parameters stay text: they are compared digit by digit.
REPORTED = pd.DataFrame(
    {
        "mixtral-8x7b": {"title": "Mixtral-8x7B", "active_b": "12.9", "total_b": "46.7", "experts": "2/8", "layers": 32},
        "qwen1.5-moe-a2.7b": {"title": "Qwen1.5-MoE", "active_b": "2.7", "total_b": "14.3", "experts": "4/60", "layers": 24},
        "phi-3.5-moe": {"title": "Phi-3.5-MoE", "active_b": "6.6", "total_b": "42", "experts": "2/16", "layers": 32},
    }
).T
_WIDTHS = [0.13, *[0.09] * 8, 0.15]  # of the table's columns, as shares of the figure


def parameter_table(geometry: pd.DataFrame) -> pd.DataFrame:
    """The paper's numbers and the computed ones, the latter also rounded to as many digits as the paper prints.

    Args:
        geometry: rows of `pipeline.geometries`, one per model.
    Returns:
        One row per model; parameters in units of 10^9.
    """
    computed = geometry.set_index("model").loc[REPORTED.index]
    table = REPORTED.rename(columns={"active_b": "active_reported_b", "total_b": "total_reported_b"}).assign(
        active_b=computed.active_params / 1e9,
        total_b=computed.total_params / 1e9,
        active_rounded=_rounded_alike(computed.active_params, REPORTED.active_b),
        total_rounded=_rounded_alike(computed.total_params, REPORTED.total_b),
        experts_computed=[f"{k}/{j}" for k, j in zip(computed.experts_per_token, computed.num_experts, strict=True)],
        layers_computed=computed.num_layers,
        idle_percent=100 * (1 - computed.active_params / computed.total_params),
    )
    return table.reset_index(names="model")


def _rounded_alike(params: "pd.Series[int]", printed: "pd.Series[str]") -> list[str]:
    """Parameters in units of 10^9 with as many decimals as the printed text has."""
    return [f"{value / 1e9:.{len(text.partition('.')[2])}f}" for value, text in zip(params, printed, strict=True)]


def draw(table: pd.DataFrame) -> "Figure":
    """The table as a picture.

    Args:
        table: as `parameter_table` returns it.
    """
    use_style()
    fig, axis = plt.subplots(figsize=(9.6, 1.5))
    axis.axis("off")
    shown = _shown(table)
    look: dict[str, Any] = {"colWidths": _WIDTHS, "loc": "center", "cellLoc": "center"}
    _format(axis.table(shown.values.tolist(), colLabels=list(shown.columns), **look))
    provenance(fig, "computed", "published configurations on the meta device")
    return fig


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": table.title,
            "active (B)\nreported": table.active_reported_b,
            "active (B)\ncomputed": table.active_b.map("{:.2f}".format),
            "total (B)\nreported": table.total_reported_b,
            "total (B)\ncomputed": table.total_b.map("{:.2f}".format),
            "experts K/J\nreported": table.experts,
            "experts K/J\ncomputed": table.experts_computed,
            "MoE layers\nreported": table.layers,
            "MoE layers\ncomputed": table.layers_computed,
            "idle in a step\n(% of parameters)": table.idle_percent.map("{:.0f}".format),
        }
    )


def _format(table: "Table") -> None:
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    table.scale(1, 1.6)
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        cell.set_height(cell.get_height() * (1.5 if row == 0 else 1))  # the head has two lines
