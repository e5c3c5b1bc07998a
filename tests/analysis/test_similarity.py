"""F8 and F9 against numpy's and scipy's own, pair by pair."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr

from finemoe.analysis.similarity import SEARCHES, PromptPairs, binned_hit_rate, correlation, prompt_pairs
from finemoe.errors import FinemoeError
from tests.test_traces import make_trace

TRACE = make_trace(4, (6, 5, 7, 4, 8))


def prompt_rows(request: int) -> list[int]:
    rows = TRACE.rows_of(request)
    return [row for row in range(rows.start, rows.stop) if TRACE.step[row] == 0]


def test_pairs_are_the_definitions():
    pairs = prompt_pairs(TRACE)
    for a in range(5):
        for b in range(5):
            ea, eb = (TRACE.embeddings(np.array(prompt_rows(r))).mean(axis=0).astype(float) for r in (a, b))
            assert pairs.similarity["semantic"][a, b] == pytest.approx(
                ea @ eb / np.linalg.norm(ea) / np.linalg.norm(eb), abs=1e-5
            )
            ma, mb = (TRACE.maps(np.array(prompt_rows(r))).mean(axis=0).reshape(-1).astype(float) for r in (a, b))
            assert pairs.similarity["trajectory"][a, b] == pytest.approx(
                ma @ mb / np.linalg.norm(ma) / np.linalg.norm(mb), abs=1e-5
            )
            overlaps = []
            for layer in range(3):
                chosen = []
                for request in (a, b):
                    counts = np.bincount(TRACE.expert_ids[prompt_rows(request), layer].reshape(-1), minlength=6)
                    chosen.append(set(np.argsort(-counts, kind="stable")[:2].tolist()))
                overlaps.append(len(chosen[0] & chosen[1]) / 2)
            assert pairs.hit_rate[a, b] == pytest.approx(np.mean(overlaps))


def test_correlation_is_pearson_over_pairs():
    pairs = prompt_pairs(TRACE)
    upper = np.triu_indices(5, 1)
    for search in SEARCHES:
        found = correlation(pairs, search)
        assert found.value == pytest.approx(pearsonr(pairs.similarity[search][upper], pairs.hit_rate[upper]).statistic, abs=1e-6)
        assert found.low <= found.value <= found.high


def test_bins_hold_all_pairs_in_order():
    pairs = prompt_pairs(TRACE)
    table = binned_hit_rate(pairs, "trajectory", num_bins=3)
    assert table.num_pairs.sum() == 10
    assert (np.diff(table.similarity) > 0).all()
    upper = np.triu_indices(5, 1)
    assert (table.hit_rate * table.num_pairs).sum() == pytest.approx(pairs.hit_rate[upper].sum())


def test_equal_scores_share_a_bin():
    score = np.where(np.add.outer(np.arange(12), np.arange(12)) % 2, 0.2, 1.0)
    table = binned_hit_rate(PromptPairs({"semantic": score}, score), "semantic", num_bins=8)
    assert table.num_pairs.sum() == 12 * 11 / 2
    np.testing.assert_allclose(table.hit_rate, table.similarity)


def test_a_trace_without_embeddings_is_named():
    with pytest.raises(FinemoeError, match="no semantic embeddings"):
        prompt_pairs(replace(TRACE, embedding_table=None, embedding_index=None))
