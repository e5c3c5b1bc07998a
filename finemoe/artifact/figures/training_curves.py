"""Loss and perplexity while the miniatures were trained (notebooks/studies/training_curves.ipynb)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style
from finemoe.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = {
    "train_loss_nats": "training loss (nats per token)",
    "held_out_perplexity_conversations": "held-out perplexity, conversations",
    "held_out_perplexity_documentation": "held-out perplexity, documentation",
    "load_balancing_loss": "load-balancing loss",
}
_LOGARITHMIC = ("held_out_perplexity_conversations", "held_out_perplexity_documentation")


def read_curves(paths: Sequence[str]) -> pd.DataFrame:
    """Curves of several models, each named by its folder; relative paths start at the repository root."""
    curves = [pd.read_csv(ROOT / path).assign(model=Path(path).parent.name) for path in paths]
    return pd.concat(curves).reset_index(drop=True)


def draw(table: pd.DataFrame) -> "Figure":
    """One panel for each measure, by tokens seen.

    Args:
        table: as from `read_curves`.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    use_style()
    shown = table.assign(title=table.model.map(model_title), million=table.tokens / 1e6)
    styles = series_styles(list(shown.title.unique()))
    fig, axes = plt.subplots(1, len(_MEASURES), figsize=(12, 3))
    for axis, (column, label) in zip(axes, _MEASURES.items(), strict=True):
        sns.lineplot(shown, x="million", y=column, hue="title", style="title", legend=axis is axes[1], ax=axis, **styles)
        axis.set(xlabel="tokens seen (millions)", ylabel=label, yscale="log" if column in _LOGARITHMIC else "linear")
    axes[1].legend(title=None)
    provenance(fig, "training, one curve per miniature")
    return fig
