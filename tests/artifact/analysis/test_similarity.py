"""F8 and F9 against numpy's and scipy's own, pair by pair."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from finemoe.artifact.analysis.mixtral import BEYOND, SHORTENED, WHOLE, correlation_table, hit_rate_table, subject_pairs
from finemoe.artifact.analysis.similarity import (
    SEARCHES,
    PromptPairs,
    binned_hit_rate,
    correlation,
    grouped_correlation,
    grouped_hit_rate,
    pairs_of,
    prompt_pairs,
)
from finemoe.errors import FinemoeError
from finemoe.importers.request_table import load_mmlu, sample_folder
from finemoe.intervals import bootstrap_mean
from finemoe.paths import DATA
from tests.importers.test_request_table import GROUPS, make_counts, make_table
from tests.test_traces import make_trace

TRACE = make_trace(4, (6, 5, 7, 4, 8))
SENTENCES = np.random.default_rng(5).normal(size=(5, 9)).astype(np.float32)


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


def test_sentences_are_a_third_similarity_if_given():
    assert list(prompt_pairs(TRACE).similarity) == ["semantic", "trajectory"]
    with_them = prompt_pairs(TRACE, SENTENCES)
    assert list(with_them.similarity) == list(SEARCHES)
    expected = SENTENCES[1] @ SENTENCES[4] / np.linalg.norm(SENTENCES[1]) / np.linalg.norm(SENTENCES[4])
    assert with_them.similarity["sentence"][1, 4] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(with_them.hit_rate, prompt_pairs(TRACE).hit_rate)


def test_correlation_is_pearson_over_pairs():
    pairs = prompt_pairs(TRACE, SENTENCES)
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


def test_a_prompt_with_nothing_of_its_own_is_similar_to_none():
    counts = np.array([[[0, 0, 0]], [[3, 1, 0]], [[2, 2, 0]]])
    found = pairs_of({"trajectory": counts.astype(float)}, counts, 1).similarity["trajectory"]
    assert found[0].tolist() == [0, 0, 0]
    assert found[1, 2] == pytest.approx(8 / 80**0.5)


def random_groups(sizes=(6, 9, 4)) -> list[PromptPairs]:
    rng = np.random.default_rng(2)
    return [pairs_of({"sentence": rng.normal(size=(n, 5))}, rng.integers(0, 30, (n, 4, 6)), 2) for n in sizes]


def test_grouped_correlation_is_the_mean_of_the_groups_own():
    groups = random_groups()
    own = []
    for pairs in groups:
        upper = np.triu_indices(len(pairs.hit_rate), 1)
        own.append(pearsonr(pairs.similarity["sentence"][upper], pairs.hit_rate[upper]).statistic)
    found = grouped_correlation(groups, "sentence")
    expected = bootstrap_mean(np.array(own))
    assert found.value == pytest.approx(np.mean(own))
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_every_group_is_binned_by_itself_and_counts_the_same():
    groups = random_groups()
    table = grouped_hit_rate(groups, "sentence", num_bins=3)
    lowest = []
    for pairs in groups:
        points = [
            (pairs.similarity["sentence"][a, b], pairs.hit_rate[a, b])
            for a in range(len(pairs.hit_rate))
            for b in range(a + 1, len(pairs.hit_rate))
        ]
        lowest.append(np.mean(sorted(points)[: len(points) // 3], axis=0))
    np.testing.assert_allclose(table.loc[0, ["similarity", "hit_rate"]].astype(float), np.mean(lowest, axis=0))
    assert table.num_pairs.sum() == 15 + 36 + 6
    assert ((table.low <= table.hit_rate) & (table.hit_rate <= table.high)).all()


def test_subjects_are_never_compared_with_each_other():
    counts, sentences = make_counts(), np.random.default_rng(1).normal(size=(5, 7))
    pairs = subject_pairs(make_table(counts), sentences)
    for part, weights in ((WHOLE, counts), (BEYOND, make_table(counts).counts_beyond_shared())):
        law, art = pairs[part]
        assert (law.hit_rate.shape, art.hit_rate.shape) == ((3, 3), (2, 2))
        a, b = (row for row, group in enumerate(GROUPS) if group == "art")
        chosen = [[set(np.argsort(-layer, kind="stable")[:2].tolist()) for layer in weights[row]] for row in (a, b)]
        shares = [len(one & other) / 2 for one, other in zip(*chosen, strict=True)]
        assert art.hit_rate[0, 1] == pytest.approx(np.mean(shares))
        cosine = np.vdot(weights[a], weights[b]) / np.linalg.norm(weights[a]) / np.linalg.norm(weights[b])
        assert art.similarity["trajectory"][0, 1] == pytest.approx(cosine, abs=1e-6)


def test_shipped_tables_are_those_of_the_sample(shared_data):
    """All but the sentence embeddings, which take minutes, computed again."""
    if not sample_folder().is_dir():
        pytest.skip("the Mixtral routing is not among the external data")
    table = load_mmlu(sample_folder() / "mmlu_request_level.npz", sample_folder() / "mmlu_questions.jsonl.gz").without(SHORTENED)
    pairs = subject_pairs(table, np.ones((len(table.texts), 1)))
    for name, found in (("f8", hit_rate_table(pairs)), ("f9", correlation_table(pairs))):
        shipped = pd.read_csv(DATA / "reference" / f"{name}_mixtral.csv").query("search == 'trajectory'").reset_index(drop=True)
        again = found.query("search == 'trajectory'").reset_index(drop=True)
        pd.testing.assert_frame_equal(again, shipped, rtol=1e-5, check_dtype=False)
