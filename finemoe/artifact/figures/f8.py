"""Figure 8: whether similar prompts activate the same experts, as hit rate against similarity."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from finemoe.artifact.analysis.similarity import SEARCHES, PromptPairs, binned_hit_rate, prompt_pairs
from finemoe.artifact.figures.panels import in_order, legend_above, panel_title, whiskers
from finemoe.artifact.figures.recordings import recordings
from finemoe.artifact.plotting import provenance, series_styles, use_style
from finemoe.artifact.sentences import embed_sentences, prompt_texts
from finemoe.importers.request_table import MODEL
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALL = {"capsize": 2, "markersize": 3.5, "linewidth": 1}
RESAMPLED = "95 % intervals, prompts (MMLU: subjects) resampled"


def sentence_pairs(trace: RoutingTrace, dataset: str, sources: Mapping[str, dict[str, str]], sentence_model: str) -> PromptPairs:
    """All pairs of a trace's prompts.

    Args:
        dataset: its name. sources: where datasets other than the embedded ones come from, by name.
        sentence_model: as `sentences.embed_sentences` takes it; "" leaves that similarity out.
    """
    if not sentence_model:
        return prompt_pairs(trace)
    texts = prompt_texts(trace, **({"dataset": dataset} | sources.get(dataset, {})))
    return prompt_pairs(trace, embed_sentences(texts, sentence_model))


def hit_rates(
    traces: Sequence[str],
    dataset_sources: Mapping[str, dict[str, str]],
    sentence_model: str,
    mixtral_table: str,
    num_bins: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Hit rate in bins of similarity, for every trace and every kind of similarity.

    Args:
        traces: one file per model and dataset. dataset_sources, sentence_model: as `sentence_pairs` takes them.
        mixtral_table: file with the same rows for real routing, which come last. num_bins: of equally many pairs.
    Returns:
        Rows (similarity, hit_rate, low, high, num_pairs, search, model, dataset).
    """
    tables = []
    for model, dataset, trace in recordings(traces):
        pairs = sentence_pairs(trace, dataset, dataset_sources, sentence_model)
        for search in pairs.similarity:
            found = binned_hit_rate(pairs, search, num_bins, seed)
            tables.append(found.assign(search=search, model=model, dataset=dataset))
    return pd.concat([*tables, pd.read_csv(ROOT / mixtral_table)], ignore_index=True)


def draw(table: pd.DataFrame, sentence_model: str, skipped: str = "") -> "Figure":
    """One row of panels per kind of similarity; a column per model, and one per part of the real model's prompts.

    Args:
        table: as `hit_rates` returns it. sentence_model: for the line below the figure.
        skipped: why there are no sentence embeddings; "" if there are.
    """
    use_style()
    columns = _columns(table)
    fig, axes = plt.subplots(len(SEARCHES), len(columns), figsize=(2.2 * len(columns), 2.1 * len(SEARCHES)), squeeze=False)
    absent = {"semantic": "no embeddings in the public data", "sentence": f"skipped: {skipped}"}
    looks, lowest = _looks(in_order(table.dataset)), math.floor(10 * table.low.min()) / 10
    for row, search in zip(axes, SEARCHES, strict=True):
        for axis, part in zip(row, columns.values(), strict=True):
            _draw_panel(axis, part[part.search == search], looks, absent.get(search, ""))
            axis.set(xlabel=f"{search} similarity (cosine)", ylim=(lowest, 1))
        row[0].set_ylabel("hit rate")
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
    legend_above(fig, axes.flat, ncols=len(looks))
    origin = f"sentence: {sentence_model}" if not skipped else "sentence: skipped for the miniatures"
    provenance(fig, "recorded routing", "all pairs of prompts (MMLU: inside a subject)", RESAMPLED, origin)
    return fig


def _columns(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What each column of panels shows, by title.

    The real model's prompts get a column for each part that is compared: on one axis, the similarities of whole prompts, all
    above 0.99, would share one spot.
    """
    columns = {panel_title(model): table[table.model == model] for model in in_order(table.model) if model != MODEL}
    for dataset, part in table[table.model == MODEL].groupby("dataset", sort=False):
        columns[f"{panel_title(MODEL)}\n{str(dataset).removeprefix('MMLU, ')}"] = part
    return columns


def _looks(datasets: Sequence[str]) -> dict[str, dict[str, Any]]:
    styles = series_styles(datasets)
    looks = {}
    for index, name in enumerate(datasets):
        colour = styles["palette"][name]
        inside = "white" if index % 2 else colour  # hollow marks leave visible what they overlap
        looks[name] = {"color": colour, "marker": styles["markers"][name], "markerfacecolor": inside, **_SMALL}
    return looks


def _draw_panel(axis: "Axes", part: pd.DataFrame, looks: Mapping[str, dict[str, Any]], absent: str) -> None:
    if part.empty:
        axis.set_axis_off()
        axis.text(0.5, 0.5, fill(absent, 24), transform=axis.transAxes, ha="center", va="center", fontsize=7)
    for dataset, line in part.groupby("dataset", sort=False):
        axis.errorbar(line.similarity, line.hit_rate, whiskers(line, "hit_rate"), label=dataset, **looks[str(dataset)])
    axis.locator_params(axis="x", nbins=4)
