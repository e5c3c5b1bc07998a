"""Working sets, reuse and concentration against sets, dictionaries and loops."""

import math
from collections import Counter

import numpy as np
import pytest

from finemoe.advice.usage import concentration_rows, decoded, growth, request_rows, reuse_rows, usage_counts, working_set_rows
from finemoe.traces import DECODE, PREFILL, RoutingTrace

LAYERS, EXPERTS, TOP_K = 3, 7, 2
LENGTHS = (25, 12, 0, 31)


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    rng = np.random.default_rng(5)
    ids = np.stack([[rng.permutation(EXPERTS)[:TOP_K] for _ in range(LAYERS)] for _ in range(sum(LENGTHS))])
    return RoutingTrace.from_topk(ids, np.full(ids.shape, 1 / TOP_K), np.cumsum([0, *LENGTHS]), EXPERTS)


def used(trace: RoutingTrace, rows: range, layer: int) -> set[int]:
    return {int(expert) for row in rows for expert in trace.expert_ids[row, layer]}


def test_a_working_set_is_that_of_windows_within_requests(trace):
    rows = {row["tokens"]: row for row in working_set_rows(trace, (1, 10, 30, 100))}
    assert set(rows) == {1, 10, 30}  # no request has 100 tokens
    for tokens, row in rows.items():
        windows = [
            range(begin, begin + tokens)
            for first, end in zip(trace.offsets[:-1], trace.offsets[1:], strict=True)
            for begin in range(first, end - tokens + 1, tokens)
        ]
        means = [np.mean([len(used(trace, window, layer)) for window in windows]) for layer in range(LAYERS)]
        assert row["mean"] == pytest.approx(np.mean(means))
        assert (row["least"], row["greatest"]) == pytest.approx((min(means), max(means)))
        assert row["experts"] == pytest.approx(sum(means))


def test_a_request_counts_as_a_whole(trace):
    row = request_rows(trace)
    requests = [range(*bounds) for bounds in zip(trace.offsets[:-1], trace.offsets[1:], strict=True) if bounds[0] < bounds[1]]
    means = [np.mean([len(used(trace, request, layer)) for request in requests]) for layer in range(LAYERS)]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["tokens"] == pytest.approx(sum(LENGTHS) / 3)


def test_reuse_is_counted_in_tokens_of_the_same_request(trace):
    gaps: Counter[int] = Counter()
    for first, end in zip(trace.offsets[:-1], trace.offsets[1:], strict=True):
        last: dict[tuple[int, int], int] = {}
        for row in range(first, end):
            for layer in range(LAYERS):
                for expert in trace.expert_ids[row, layer].tolist():
                    if (layer, expert) in last:
                        gaps[row - last[layer, expert]] += 1
                    last[layer, expert] = row
    for row in reuse_rows(trace, (1, 3, 8)):
        expected = sum(count for gap, count in gaps.items() if gap <= row["tokens"])
        assert row["share"] == pytest.approx(expected / trace.expert_ids.size)


def test_concentration_of_known_shares():
    """Layer 0 uses one expert only, layer 1 all alike."""
    ids = np.array([[[0], [row % EXPERTS]] for row in range(4 * EXPERTS)])
    first, second = concentration_rows(RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, len(ids)], EXPERTS))
    assert (first["touched"], second["touched"]) == (1, EXPERTS)
    assert (first["effective"], second["effective"]) == pytest.approx((1, EXPERTS))
    assert (first["gini"], second["gini"]) == pytest.approx((1 - 1 / EXPERTS, 0))
    assert (first["top_quarter"], second["top_quarter"]) == pytest.approx((1, 2 / EXPERTS))


def test_the_gini_coefficient_is_half_the_mean_difference(trace):
    counts = usage_counts(trace)
    for row, shares in zip(concentration_rows(trace), counts / counts.sum(axis=1, keepdims=True), strict=True):
        differences = [abs(one - other) for one in shares for other in shares]
        assert row["gini"] == pytest.approx(np.mean(differences) / 2 / shares.mean())
        assert row["entropy_bits"] == pytest.approx(-sum(share * math.log2(share) for share in shares if share))


def test_counts_are_of_all_rows_whatever_the_blocks(trace, monkeypatch):
    monkeypatch.setattr("finemoe.advice.usage._BLOCK_ROWS", 7)
    expected = Counter((layer, int(expert)) for row in trace.expert_ids for layer in range(LAYERS) for expert in row[layer])
    counts = usage_counts(trace)
    assert {(layer, expert): counts[layer, expert] for layer, expert in expected} == dict(expected)
    assert counts.sum() == trace.expert_ids.size


def test_growth_is_what_the_last_quarter_uses_first():
    ids = np.array([[[expert]] for expert in [0, 1, 0, 1, 0, 1, 2, 3]])
    assert growth(RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, 8], 5)) == pytest.approx(2 / 4)


def test_prompts_are_left_out_where_there_are_decode_steps(trace):
    phase = np.where(np.arange(trace.num_rows) == 0, PREFILL, DECODE)
    step = np.concatenate([np.arange(length) for length in LENGTHS])
    mixed = trace.arranged(np.arange(trace.num_rows), trace.offsets, step.astype(np.int32), phase.astype(np.uint8))
    assert decoded(mixed).num_rows == trace.num_rows - 1
    prompts = trace.arranged(np.arange(3), np.array([0, 3]), np.zeros(3, np.int32), np.zeros(3, np.uint8))
    assert decoded(prompts) is prompts
