"""Whether similar prompts activate the same experts (Figs. 8 and 9).

One point per prompt, all pairs of prompts. A prompt's semantic embedding is the mean of its tokens' embeddings, its map is the
mean of its prefill maps, and its sentence embedding is that of its whole text, computed by a separate model. Its activated set at
a layer consists of the K experts selected by most of its prompt tokens. The hit rate of a pair is the overlap of the two sets,
averaged over layers. Intervals resample prompts, because pairs that share a prompt are not independent. If prompts come in
groups, only pairs within a group count, every group has equal weight, and intervals resample groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from finemoe.intervals import Interval, bootstrap_mean, resample_counts
from finemoe.maps.expert_map import top_ids
from finemoe.traces import PREFILL, RoutingTrace

SEARCHES = ("semantic", "trajectory", "sentence")


@dataclass(frozen=True)
class PromptPairs:
    """All pairs of R prompts: similarities by search (those available) and hit rates, each [R, R], symmetric."""

    similarity: dict[str, np.ndarray]
    hit_rate: np.ndarray


def prompt_pairs(trace: RoutingTrace, sentences: np.ndarray | None = None) -> PromptPairs:
    """Similarities and overlaps of all pairs of a trace's prompts.

    Args:
        sentences: [R, h] embeddings of the prompts' texts (`finemoe.artifact.sentences`); None leaves that similarity out.
    Raises:
        FinemoeError: the trace holds no semantic embeddings.
    """
    embeddings, maps, counts = _prompt_means(trace)
    vectors = {"semantic": embeddings, "trajectory": maps}
    return pairs_of(vectors if sentences is None else vectors | {"sentence": sentences}, counts, trace.top_k)


def pairs_of(vectors: Mapping[str, np.ndarray], counts: np.ndarray, top_k: int) -> PromptPairs:
    """Cosines and overlaps of all pairs of R prompts.

    Args:
        vectors: by search, one vector per prompt, [R, ...].
        counts: [R, L, J], the number of a prompt's tokens that activated each expert; the K largest per layer form its set.
        top_k: K.
    """
    similarity = {search: _cosines(rows.reshape(len(rows), -1)) for search, rows in vectors.items()}
    sets = np.zeros(counts.shape, dtype=np.float32)
    np.put_along_axis(sets, top_ids(counts, top_k), 1.0, axis=-1)
    flat = sets.reshape(len(sets), -1)
    return PromptPairs(similarity, (flat @ flat.T).astype(float) / (counts.shape[1] * top_k))


def correlation(pairs: PromptPairs, search: str, seed: int = 0) -> Interval:
    """Pearson coefficient of similarity and hit rate over all pairs of different prompts, with its 95 % interval (F9)."""
    similarity, hits = pairs.similarity[search], pairs.hit_rate
    value = _weighted_pearson(similarity, hits, np.ones(len(hits)))
    draws = [_weighted_pearson(similarity, hits, weights) for weights in resample_counts(len(hits), 500, seed)]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(np.asarray(value), low, high)


def binned_hit_rate(pairs: PromptPairs, search: str, num_bins: int = 8, seed: int = 0) -> pd.DataFrame:
    """Mean hit rate in bins with equal numbers of pairs along the similarity (F8).

    Returns:
        Rows (similarity, hit_rate, low, high, num_pairs); the similarity is the bin's mean.
    """
    upper = np.triu_indices(len(pairs.hit_rate), 1)
    scores, hits = pairs.similarity[search][upper], pairs.hit_rate[upper]
    edges = np.quantile(scores, np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, scores, side="right")
    draws = resample_counts(len(pairs.hit_rate), 500, seed)
    pair_weights = draws[:, upper[0]] * draws[:, upper[1]]
    members = [bins == number for number in np.unique(bins)]  # equal scores share a bin, so some bins may be empty
    return pd.DataFrame([_bin_record(scores[pick], hits[pick], pair_weights[:, pick]) for pick in members])


def grouped_correlation(groups: Sequence[PromptPairs], search: str, seed: int = 0) -> Interval:
    """Mean over groups of Pearson's coefficient within each, with the 95 % interval from resampling groups (F9)."""
    values = [_weighted_pearson(pairs.similarity[search], pairs.hit_rate, np.ones(len(pairs.hit_rate))) for pairs in groups]
    return bootstrap_mean(np.array(values), seed=seed)


def grouped_hit_rate(groups: Sequence[PromptPairs], search: str, num_bins: int = 8, seed: int = 0) -> pd.DataFrame:
    """Mean hit rate along the similarity, with separate bins for each group (F8).

    The bins of a group have equal numbers of pairs; a row is the mean over the groups' bins of equal rank.

    Returns:
        Rows (similarity, hit_rate, low, high, num_pairs), as in `binned_hit_rate`.
    """
    bins = np.array([_rank_bins(pairs, search, num_bins) for pairs in groups])  # [groups, bins, 3]
    hits = bootstrap_mean(bins[..., 1], seed=seed)
    columns = {"similarity": bins[..., 0].mean(axis=0), "hit_rate": hits.value, "low": hits.low, "high": hits.high}
    return pd.DataFrame(columns | {"num_pairs": bins[..., 2].sum(axis=0).astype(int)})


def _rank_bins(pairs: PromptPairs, search: str, num_bins: int) -> list[tuple[float, float, int]]:
    """(similarity, hit rate, number of pairs) of each bin, from the least similar pairs to the most."""
    upper = np.triu_indices(len(pairs.hit_rate), 1)
    scores, hits = pairs.similarity[search][upper], pairs.hit_rate[upper]
    order = np.argsort(scores, kind="stable")
    return [(scores[pick].mean(), hits[pick].mean(), len(pick)) for pick in np.array_split(order, num_bins)]


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
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)  # a zero vector is similar to nothing
    return unit @ unit.T


def _weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Pearson over ordered pairs of different prompts; weight of a pair: the product of its prompts'; NaN if undefined."""
    pair_weights = np.outer(weights, weights).astype(float)
    np.fill_diagonal(pair_weights, 0.0)
    pair_weights /= max(pair_weights.sum(), 1.0)  # 0 if one prompt was drawn every time
    dx, dy = x - (pair_weights * x).sum(), y - (pair_weights * y).sum()
    variances = (pair_weights * dx**2).sum() * (pair_weights * dy**2).sum()
    return float((pair_weights * dx * dy).sum() / np.sqrt(variances)) if variances > 1e-20 else float("nan")
