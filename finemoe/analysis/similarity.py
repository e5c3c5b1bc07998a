"""Whether similar prompts activate the same experts (Figs. 8 and 9).

One point per prompt, all pairs of prompts. A prompt's semantic embedding is the mean of its tokens' embeddings, its map the mean
of its prefill maps; its activated set at a layer is the K experts that most of its prompt tokens selected. The hit rate of a
pair is the overlap of the two sets, averaged over layers. Intervals resample prompts, since pairs that share one are not
independent.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from finemoe.analysis.prediction import overlap, top_experts
from finemoe.metrics import Interval, resample_counts
from finemoe.traces import PREFILL, RoutingTrace

SEARCHES = ("semantic", "trajectory")


@dataclass(frozen=True)
class PromptPairs:
    """All pairs of R prompts: similarities by search and hit rates, each [R, R], symmetric."""

    similarity: dict[str, np.ndarray]
    hit_rate: np.ndarray


def prompt_pairs(trace: RoutingTrace) -> PromptPairs:
    """Similarities and overlaps of all pairs of a trace's prompts."""
    embeddings, maps, counts = _prompt_means(trace)
    similarity = {"semantic": _cosines(embeddings), "trajectory": _cosines(maps.reshape(len(maps), -1))}
    chosen = top_experts(counts, trace.top_k)
    hits = np.stack([overlap(np.broadcast_to(one, chosen.shape), chosen).mean(axis=1) for one in chosen]) / trace.top_k
    return PromptPairs(similarity, hits)


def correlation(pairs: PromptPairs, search: str, seed: int = 0) -> Interval:
    """Pearson coefficient of similarity and hit rate over all pairs of different prompts, with its 95 % interval (F9)."""
    similarity, hits = pairs.similarity[search], pairs.hit_rate
    value = _weighted_pearson(similarity, hits, np.ones(len(hits)))
    draws = [_weighted_pearson(similarity, hits, weights) for weights in resample_counts(len(hits), 500, seed)]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(np.asarray(value), low, high)


def binned_hit_rate(pairs: PromptPairs, search: str, num_bins: int = 8, seed: int = 0) -> pd.DataFrame:
    """Mean hit rate in bins of equally many pairs along the similarity (F8).

    Returns:
        Rows (similarity, hit_rate, low, high, num_pairs), the similarity being the bin's mean.
    """
    upper = np.triu_indices(len(pairs.hit_rate), 1)
    scores, hits = pairs.similarity[search][upper], pairs.hit_rate[upper]
    edges = np.quantile(scores, np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, scores, side="right")
    draws = resample_counts(len(pairs.hit_rate), 500, seed)
    pair_weights = draws[:, upper[0]] * draws[:, upper[1]]
    members = [bins == number for number in np.unique(bins)]  # equal scores share a bin, so some may be empty
    return pd.DataFrame([_bin_record(scores[pick], hits[pick], pair_weights[:, pick]) for pick in members])


def _bin_record(scores: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    totals = weights.sum(axis=1)
    means = (weights @ hits)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"similarity": scores.mean(), "hit_rate": hits.mean(), "low": low, "high": high, "num_pairs": len(hits)}


def _prompt_means(trace: RoutingTrace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean embedding [R, h], mean map [R, L, J], expert counts [R, L, J]) of every prompt."""
    embeddings, maps, counts = [], [], []
    for request in range(trace.num_requests):
        rows = trace.rows_of(request)
        prompt = np.arange(rows.start, rows.stop)[trace.phase[rows] == PREFILL]
        embeddings.append(trace.embeddings(prompt).mean(axis=0))
        maps.append(trace.maps(prompt).mean(axis=0))
        one_hot = np.zeros((len(prompt), trace.num_layers, trace.num_experts))
        np.put_along_axis(one_hot, trace.expert_ids[prompt].astype(np.int64), 1.0, axis=-1)
        counts.append(one_hot.sum(axis=0))
    return np.stack(embeddings), np.stack(maps), np.stack(counts)


def _cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def _weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Pearson over ordered pairs of different prompts, a pair counting the product of its prompts' weights; NaN if undefined."""
    pair_weights = np.outer(weights, weights).astype(float)
    np.fill_diagonal(pair_weights, 0.0)
    pair_weights /= max(pair_weights.sum(), 1.0)  # 0 where one prompt was drawn every time
    dx, dy = x - (pair_weights * x).sum(), y - (pair_weights * y).sum()
    variances = (pair_weights * dx**2).sum() * (pair_weights * dy**2).sum()
    return float((pair_weights * dx * dy).sum() / np.sqrt(variances)) if variances > 1e-20 else float("nan")
