"""Figure 9: the correlation of similarity and hit rate over all pairs of prompts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.analysis.similarity import SEARCHES, correlation
from finemoe.artifact.figures.f8 import RESAMPLED, sentence_pairs
from finemoe.artifact.figures.panels import in_order, legend_above, whiskers
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import model_title, provenance, series_styles, use_style
from finemoe.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "semantic": "semantic (the model's token embeddings)",
    "trajectory": "trajectory (expert maps)",
    "sentence": "sentence (a sentence-transformers model)",
}


def correlations(
    traces: Sequence[str],
    dataset_sources: Mapping[str, dict[str, str]],
    sentence_model: str,
    mixtral_table: str,
    seed: int = 0,
) -> pd.DataFrame:
    """Pearson's coefficient for every trace and every kind of similarity.

    Args:
        traces: one file per model and dataset. dataset_sources, sentence_model: as `f8.sentence_pairs` takes them.
        mixtral_table: file with the same rows for real routing, which come last.
    Returns:
        Rows (model, dataset, search, pearson, low, high).
    """
    records = []
    for model, dataset, trace in recordings(traces):
        pairs = sentence_pairs(trace, dataset, dataset_sources, sentence_model)
        for search in pairs.similarity:
            found = correlation(pairs, search, seed)
            bounds = {"pearson": float(found.value), "low": float(found.low), "high": float(found.high)}
            records.append({"model": model, "dataset": dataset, "search": search, **bounds})
    return pd.concat([pd.DataFrame(records), pd.read_csv(ROOT / mixtral_table)], ignore_index=True)


def draw(table: pd.DataFrame, sentence_model: str, skipped: str = "") -> "Figure":
    """Coefficients with their intervals, one panel per model.

    Args:
        table: as `correlations` returns it. sentence_model, skipped: as `f8.draw` takes them.
    """
    use_style()
    models = in_order(table.model)
    fig, axes = plt.subplots(1, len(models), figsize=(2.4 * len(models), 2.8), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        _draw_panel(axis, table[table.model == model])
        axis.set_title(model_title(model))
    axes[0][0].set(ylabel="Pearson coefficient", ylim=(min(-0.05, table.low.min() - 0.05), 1))
    legend_above(fig, axes[0], ncols=len(SEARCHES))
    pairs = "all pairs of prompts (MMLU: inside a subject; no semantic embeddings there)"
    origin = f"sentence: {sentence_model}" if not skipped else f"sentence: skipped for the miniatures:\n{skipped}"
    provenance(fig, "recorded routing", pairs, RESAMPLED, origin)
    return fig


def _draw_panel(axis: "Axes", part: pd.DataFrame) -> None:
    datasets, styles = in_order(part.dataset), series_styles(list(SEARCHES))
    for index, search in enumerate(SEARCHES):
        found = part[part.search == search]
        if found.empty:
            continue
        places = [datasets.index(dataset) + 0.15 * (index - 1) for dataset in found.dataset]
        look: dict[str, Any] = {"fmt": styles["markers"][search], "color": styles["palette"][search], "capsize": 3}
        axis.errorbar(places, found.pearson, whiskers(found, "pearson"), label=_LABELS[search], **look)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlim(-0.5, len(datasets) - 0.5)
    axis.set_xticks(range(len(datasets)), [dataset.replace(", ", ",\n") for dataset in datasets])
