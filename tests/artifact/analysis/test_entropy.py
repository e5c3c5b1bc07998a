"""F3's quantities against loops over iterations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from finemoe.artifact.analysis.entropy import (
    decode_rows,
    entropy_bits,
    entropy_table,
    plateau_after,
    request_entropies,
    requests_of,
    row_weights,
    running_entropy,
)
from finemoe.errors import FinemoeError
from tests.test_traces import make_trace

weights = arrays(np.float64, (4, 6), elements=st.floats(0, 10))


def bits(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 500), st.sampled_from(["counts", "probabilities"]))
def test_coarse_and_fine_are_the_definitions(seed, of):
    trace = make_trace(seed, (8, 6, 9))
    rows = decode_rows(trace)
    owners = requests_of(trace, rows)
    coarse, fine = request_entropies(row_weights(trace, rows, of), owners)
    for request in range(3):
        mine = [row for row in range(trace.rows_of(request).start, trace.rows_of(request).stop) if trace.phase[row] == 1]
        for layer in range(trace.num_layers):
            vectors = []
            for row in mine:
                vector = trace.probs[row, layer].astype(float)
                if of == "counts":
                    vector = np.isin(np.arange(6), trace.expert_ids[row, layer]).astype(float)
                vectors.append(vector)
            assert coarse[request, layer] == pytest.approx(bits(sum(vectors)), abs=1e-3)
            assert fine[request, layer] == pytest.approx(np.mean([bits(v) for v in vectors]), abs=1e-3)
    assert (coarse >= fine - 1e-6).all()


def test_one_token_activates_log2_k_bits():
    table = entropy_table(make_trace(1, (8, 9)))
    fine = table[(table.of == "counts") & (table.kind == "fine")].iloc[0]
    assert (fine.entropy_bits, fine.low, fine.high) == pytest.approx((1.0, 1.0, 1.0))


def test_requests_with_experts_of_their_own_stay_below_the_null():
    trace = make_trace(2, (40, 40), layers=2, experts=8)
    ids = np.tile(np.array([0, 1]), (80, 2, 1)).astype(np.uint8)
    ids[:40] += np.random.default_rng(0).integers(0, 2, (40, 2, 1)).astype(np.uint8) * 2
    ids[40:] += 4 + np.random.default_rng(1).integers(0, 2, (40, 2, 1)).astype(np.uint8) * 2
    table = entropy_table(type(trace)(**{**trace.__dict__, "expert_ids": ids})).set_index(["of", "kind"])
    assert table.loc[("counts", "shuffled"), "entropy_bits"] > table.loc[("counts", "coarse"), "entropy_bits"] + 0.5


def test_the_running_sum_starts_at_one_iteration_and_ends_at_the_request():
    trace = make_trace(3, (12, 4, 12))
    table = running_entropy(trace, 10)
    real = table[table.kind == "requests"]
    assert real.num_requests.tolist() == [2] * 10
    assert real.entropy_bits.iloc[0] == pytest.approx(1.0)
    rows = decode_rows(trace)
    coarse, _ = request_entropies(row_weights(trace, rows, "counts"), requests_of(trace, rows))
    assert real.entropy_bits.iloc[-1] == pytest.approx(coarse[[0, 2]].mean())


def test_plateau():
    assert plateau_after(np.array([0.0, 0.5, 0.89, 0.91, 1.0])) == 4


def test_the_curve_of_short_requests_ends_at_their_median_length():
    trace = make_trace(3, (6, 8, 10))
    lengths = [int((trace.phase[trace.rows_of(request)] == 1).sum()) for request in range(3)]
    assert running_entropy(trace, 30).iterations.max() == np.median(lengths)


def test_a_trace_without_decode_iterations_is_named():
    trace = make_trace(1, (8, 9))
    prompts_only = type(trace)(**{**trace.__dict__, "phase": np.zeros_like(trace.phase)})
    with pytest.raises(FinemoeError, match="no decode iterations"):
        entropy_table(prompts_only)


@given(weights)
def test_entropy_is_scipys(values):
    positive = values.sum(axis=1) > 0
    np.testing.assert_allclose(entropy_bits(values)[positive], entropy(values[positive], base=2, axis=1), atol=1e-9)
    assert (entropy_bits(values)[~positive] == 0).all()


@given(weights)
def test_entropy_is_concave(values):
    """Coarse >= fine holds for any data: the entropy of a mean of distributions is at least their mean entropy."""
    shares = (values + 1e-3) / (values + 1e-3).sum(axis=1, keepdims=True)
    assert entropy_bits(shares.mean(axis=0)) >= entropy_bits(shares).mean() - 1e-9
