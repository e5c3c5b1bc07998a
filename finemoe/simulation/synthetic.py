"""Routing of models for which no recording exists: synthetic gates whose statistics match recorded ones.

A gate's logits are a sum of three parts with unit variance in total: what is popular everywhere, what the request prefers, and
what the token prefers, which changes slowly from token to token. The last two are projections of a few numbers shared by all
layers, so early gates predict late ones to some degree, as in a real model. Four settings are fitted to four statistics.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from finemoe.maps.expert_map import from_logits
from finemoe.simulation.replay import replay
from finemoe.traces import DECODE, RoutingTrace

_SHARPNESS = 3.0  # of the softmax over unit-variance logits
_RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_PAIRS = 4000


@dataclass(frozen=True)
class Statistics:
    """Statistics of a trace's decode iterations.

    Attributes:
        reuse, within, across: share of a token's experts that are also activated by the previous token, by a random token of its
            request, and by a random token of the trace (either may be the token itself). recall: recall_at_k of trajectory maps
            three layers ahead, C = 1000.
    """

    reuse: float
    within: float
    across: float
    recall: float


@dataclass(frozen=True)
class Recipe:
    """Settings of the generator.

    Attributes:
        popular, requested: variance of these two parts; the token's part has the rest. persistence: correlation of the token's
            part between successive tokens. rank: number of values shared by all layers.
    """

    popular: float
    requested: float
    persistence: float
    rank: int


def statistics_of(trace: RoutingTrace, recall: float | None = None, seed: int = 0) -> Statistics:
    """Statistics of a trace with the splits history and served; recall: pass it if it is already known."""
    served = trace.split("served").decode()
    owners, rng = np.repeat(np.arange(served.num_requests), np.diff(served.offsets)), np.random.default_rng(seed)
    follows = np.flatnonzero(owners[1:] == owners[:-1]) + 1
    first = rng.integers(0, served.num_rows, _PAIRS)
    same = served.offsets[owners[first]] + (rng.random(_PAIRS) * np.diff(served.offsets)[owners[first]]).astype(int)
    other = rng.integers(0, served.num_rows, _PAIRS)
    if recall is None:
        recall = replay(served, "finemoe", 0.25, history=trace.split("history").decode()).recall_at_k
    return Statistics(
        reuse=_overlap(served.expert_ids[follows], served.expert_ids[follows - 1]),
        within=_overlap(served.expert_ids[first], served.expert_ids[same]),
        across=_overlap(served.expert_ids[first], served.expert_ids[other]),
        recall=recall,
    )


def fitted(wanted: Statistics, num_layers: int, num_experts: int, top_k: int, seed: int = 0) -> Recipe:
    """The recipe whose routing, at these sizes, has statistics as close as possible to the wanted ones."""
    across, within, reuse = (_correlation(share, num_experts, top_k) for share in (wanted.across, wanted.within, wanted.reuse))
    within, reuse = max(within, across), min(max(reuse, within), 0.999)
    settings = {"popular": across, "requested": within - across, "persistence": (reuse - within) / (1 - within)}

    @cache
    def recall(rank: int) -> float:
        trace = synthetic_trace(Recipe(**settings, rank=rank), num_layers, num_experts, top_k, 30, 60, seed)
        return replay(trace.split("served"), "finemoe", 0.25, history=trace.split("history")).recall_at_k

    # The more numbers all layers share, the less early gates predict: bisection finds two neighbours around the wanted recall.
    above = bisect_left(_RANKS, -wanted.recall, lo=1, hi=len(_RANKS) - 1, key=lambda rank: -recall(rank))
    return Recipe(**settings, rank=min(_RANKS[above - 1 : above + 1], key=lambda rank: abs(recall(rank) - wanted.recall)))


def synthetic_trace(
    recipe: Recipe, num_layers: int, num_experts: int, top_k: int, num_requests: int, tokens_per_request: int, seed: int = 0
) -> RoutingTrace:
    """Decode iterations of `num_requests` requests, 7 of 10 in the split history, the others served."""
    rng = np.random.default_rng(seed)
    popular = rng.standard_normal((num_layers, num_experts)) * np.sqrt(recipe.popular)
    projections = rng.standard_normal((num_layers, recipe.rank, num_experts)) / np.sqrt(recipe.rank)
    token_scale = np.sqrt(max(0.0, 1 - recipe.popular - recipe.requested))
    probs = np.empty((num_requests * tokens_per_request, num_layers, num_experts), dtype=np.float16)
    for request in range(num_requests):
        requested = rng.standard_normal(recipe.rank) * np.sqrt(recipe.requested)
        states = requested + token_scale * _walk(rng, tokens_per_request, recipe)
        rows = slice(request * tokens_per_request, (request + 1) * tokens_per_request)
        probs[rows] = from_logits(_SHARPNESS * (popular + np.einsum("tr,lre->tle", states, projections, optimize=True)))
    ids = np.argsort(-probs.astype(np.float32), axis=-1, kind="stable")[..., :top_k]
    num_history = round(0.7 * num_requests)
    steps = np.tile(np.arange(1, tokens_per_request + 1, dtype=np.int32), num_requests)
    return RoutingTrace(
        expert_ids=ids.astype(np.uint16),
        expert_probs=np.take_along_axis(probs, ids, axis=-1),
        offsets=np.arange(num_requests + 1, dtype=np.int64) * tokens_per_request,
        num_experts=num_experts,
        step=steps,
        phase=np.full(len(steps), DECODE, dtype=np.uint8),
        probs=probs,
        splits=("history",) * num_history + ("served",) * (num_requests - num_history),
        model=f"synthetic {asdict(recipe)}",
    )


def _walk(rng: np.random.Generator, num_tokens: int, recipe: Recipe) -> np.ndarray:
    """The token's numbers, [tokens, rank]; each step is correlated with the one before."""
    noise = rng.standard_normal((num_tokens, recipe.rank))
    states = noise.copy()
    for token in range(1, num_tokens):
        states[token] = recipe.persistence * states[token - 1] + np.sqrt(1 - recipe.persistence**2) * noise[token]
    return states


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Mean share of the experts [n, L, K] that are also among the others."""
    return float((first[..., :, None] == second[..., None, :]).any(axis=-1).mean())


def _correlation(share: float, num_experts: int, top_k: int) -> float:
    """The correlation of two Gaussian gates whose top K overlap by the given share."""
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, _PAIRS, num_experts))

    def overlap(correlation: float) -> float:
        mixed = correlation * one + np.sqrt(1 - correlation**2) * other
        return _overlap(*(np.argsort(-gate, axis=1)[:, None, :top_k] for gate in (one, mixed)))

    return _bisected(overlap, share)


def _bisected(rising: Callable[[float], float], wanted: float, low: float = 0.0, high: float = 1.0) -> float:
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2
