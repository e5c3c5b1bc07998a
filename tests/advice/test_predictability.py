"""Recalls of simple predictors against counters and loops, and of systems against replays of their own."""

from collections import Counter

import numpy as np
import pytest

import finemoe
from finemoe.advice.predictability import (
    CHANCE,
    HINDSIGHT,
    HISTORY,
    LAST,
    PROMPT,
    SO_FAR,
    learned_recalls,
    recalls_of,
    simple_recalls,
)
from finemoe.advice.sample import Sample
from finemoe.advice.systems import FINEMOE, PLUS, PREFETCHING
from finemoe.traces import DECODE, PREFILL, RoutingTrace

LAYERS, EXPERTS, TOP_K, PROMPT_TOKENS = 4, 6, 2, 3


def made(seed: int, lengths: tuple[int, ...]) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(EXPERTS, 0.5), (sum(lengths), LAYERS))
    ids = np.argsort(-probs, axis=-1)[..., :TOP_K]
    chosen = np.take_along_axis(probs, ids, axis=-1)
    step = np.concatenate([np.maximum(0, np.arange(length) - PROMPT_TOKENS + 1) for length in lengths])
    phase = np.concatenate([np.where(np.arange(length) < PROMPT_TOKENS, PREFILL, DECODE) for length in lengths])
    chosen /= chosen.sum(axis=-1, keepdims=True)
    return RoutingTrace.from_topk(ids, chosen, np.cumsum([0, *lengths]), EXPERTS, step, phase, model="made-0")


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample(made(1, (12, 4, 20)), made(2, (15, 15)), ())


def decoded_rows(trace: RoutingTrace, request: int) -> list[list[set[int]]]:
    """Of every decoded token, the experts of each layer."""
    rows = range(trace.offsets[request], trace.offsets[request + 1])
    return [
        [set(map(int, trace.expert_ids[row, layer])) for layer in range(LAYERS)] for row in rows if trace.phase[row] == DECODE
    ]


def prompt_rows(trace: RoutingTrace, request: int) -> list[list[set[int]]]:
    rows = range(trace.offsets[request], trace.offsets[request + 1])
    return [
        [set(map(int, trace.expert_ids[row, layer])) for layer in range(LAYERS)] for row in rows if trace.phase[row] == PREFILL
    ]


def hottest(rows: list[list[set[int]]]) -> list[set[int]]:
    counts = [Counter(expert for row in rows for expert in row[layer]) for layer in range(LAYERS)]
    return [set(sorted(range(EXPERTS), key=lambda e: (-one[e], e))[:TOP_K]) for one in counts]


def test_simple_predictors_on_tokens_that_have_one_before_them(sample):
    served, history = sample.served, sample.history
    requests = [decoded_rows(served, number) for number in range(served.num_requests)]
    everywhere = hottest([row for rows in requests for row in rows])
    before = hottest([row for number in range(history.num_requests) for row in decoded_rows(history, number)])
    hits: Counter[str] = Counter()
    for number, rows in enumerate(requests):
        prompt = hottest(prompt_rows(served, number))
        for place in range(1, len(rows)):
            for layer in range(LAYERS):
                used = rows[place][layer]
                hits[HINDSIGHT] += len(used & everywhere[layer])
                hits[HISTORY] += len(used & before[layer])
                hits[PROMPT] += len(used & prompt[layer])
                hits[SO_FAR] += len(used & hottest(rows[:place])[layer])
                hits[LAST] += len(used & rows[place - 1][layer])
    demanded = sum(max(0, len(rows) - 1) for rows in requests) * LAYERS * TOP_K
    found = {row["predictor"]: row for row in simple_recalls(sample)}
    assert {name: row["recall"] for name, row in found.items()} == pytest.approx(
        {name: count / demanded for name, count in hits.items()} | {CHANCE: TOP_K / EXPERTS}
    )
    assert all(found[name]["low"] <= found[name]["recall"] <= found[name]["high"] for name in hits)


def test_the_most_used_of_all_tokens_are_scored_on_all_but_the_first():
    ids = np.array([[[0]], [[1]], [[1]], [[0]], [[2]], [[1]]])  # two requests of three tokens, one layer, one expert each
    trace = RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, 3, 6], 3)
    found = {row["predictor"]: row["recall"] for row in simple_recalls(Sample(trace, None, ()))}
    assert found[HINDSIGHT] == pytest.approx(3 / 4)
    assert PROMPT not in found
    assert HISTORY not in found


def test_one_token_has_no_predecessor():
    ids = np.zeros((1, 2, 1), dtype=int)
    found = simple_recalls(Sample(RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, 1], 3), None, ()))
    assert [row["predictor"] for row in found] == [CHANCE]


def test_systems_are_asked_in_replays(sample):
    systems = {name: PREFETCHING[name] for name in (FINEMOE, "ProMoE", PLUS)}
    found = learned_recalls(sample, sample.knowledge(2, 0), systems, (1, 3), 2)
    recalls = {(row["predictor"], row["distance"]): row["recall"] for row in found}
    assert set(recalls) == {(FINEMOE, 1), (FINEMOE, 2), (FINEMOE, 3), ("ProMoE", 2), (PLUS, None)}
    for distance in (1, 2, 3):
        report = finemoe.replay(sample.served, "finemoe", 0.5, history=sample.history, prefetch_distance=distance)
        assert recalls[FINEMOE, distance] == pytest.approx(report.recall_at_k)
    report = finemoe.replay(sample.served, "promoe", 0.25, history=sample.history, prefetch_distance=2)
    assert recalls["ProMoE", 2] == pytest.approx(report.recall_at_k)


def test_what_was_replayed_already_is_not_replayed_again(sample):
    report = finemoe.replay(sample.served, "promoe", 0.25, history=sample.history, prefetch_distance=2)
    nothing = finemoe.replay(sample.served, "on-demand", 0.25)
    found = recalls_of({("ProMoE", 4): report, ("on-demand (LRU)", 4): nothing}, 2, PREFETCHING)
    assert found == [
        {
            "predictor": "ProMoE",
            "distance": 2,
            "recall": report.recall_at_k,
            "low": pytest.approx(float("nan"), nan_ok=True),
            "high": pytest.approx(float("nan"), nan_ok=True),
        }
    ]
