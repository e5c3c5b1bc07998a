"""The claims on similar prompts: Figs. 8 and 9.

Sentence embeddings are not the paper's; they are shown next to its two similarities and decide nothing.
"""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.kinds import entries_of
from finemoe.importers.request_table import MODEL as MIXTRAL  # real routing

NOT_IN_THE_PAPER = "sentence"
_SERIES = ["search", "model", "dataset"]
_PANEL = "miniatures for semantic; for trajectory also Mixtral-8x7B (real routing)"


def similarity_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Whether the hit rate rises with similarity.

    Args:
        table: as `figures.f8.hit_rates` returns it, the bins of a series in ascending order.
    Returns:
        One row per (search, model, dataset): the hit rate of the lowest and of the highest bin, and whether the interval of the
        highest is above that of the lowest.
    """
    series = table.groupby(_SERIES, sort=False)
    return pd.DataFrame(
        {
            "lowest_bin": series.hit_rate.first(),
            "highest_bin": series.hit_rate.last(),
            "rises": series.low.last() > series.high.first(),
        }
    )


def similarity_claim(tests: pd.DataFrame, sentence_model: str, skipped: str = "") -> Claim:
    """The hit rate rises with semantic and with trajectory similarity.

    Args:
        tests: as `similarity_tests` returns them. sentence_model: its name.
        skipped: why the miniatures have no sentence embeddings; "" if they have.
    """
    paper = _of_the_paper(tests)
    real = paper[_is_real(paper)]
    return Claim.judged(
        [Statement.of(f"rises with {search} similarity", name, part.rises) for search, name, part in _cases(paper)],
        id="F8",
        artefact="Fig. 8",
        claim="The hit rate rises with semantic and with trajectory similarity",
        reported="rises with both; no number",
        reproduced="lowest to highest bin: "
        + "; ".join(
            f"{model}/{dataset} {search} {row.lowest_bin:.2f} to {row.highest_bin:.2f}"
            for (search, model, dataset), row in entries_of(tests)
        ),
        panel=_PANEL,
        executor="recorded",
        why=f"With the paper's two similarities the highest bin's interval lies above the lowest bin's in "
        f"{int(paper.rises.sum())} of {len(paper)} series, in {int(real.rises.sum())} of {len(real)} on real routing. "
        + (f"Sentence embeddings were skipped for the miniatures: {skipped}." if skipped else _sentences(tests, sentence_model)),
    )


def _sentences(tests: pd.DataFrame, sentence_model: str) -> str:
    """Sentence embeddings compared with the model's own embedding layer, on the miniatures."""
    rise = tests.highest_bin - tests.lowest_bin
    sentence = ~_is_real(tests) & _is_of(tests, NOT_IN_THE_PAPER)
    return (
        f"Sentence embeddings ({sentence_model}) rise in {int(tests.rises[sentence].sum())} of {int(sentence.sum())} miniature "
        f"series, on average by {rise[sentence].mean():.2f} of hit rate where the model's own embedding layer gives "
        f"{rise[_is_of(tests, 'semantic')].mean():.2f}."
    )


def correlation_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Whether similarity and hit rate correlate positively.

    Args:
        table: as `figures.f9.correlations` returns it.
    Returns:
        One row per (search, model, dataset): pearson, low, high; whether the coefficient is positive, and its whole interval.
    """
    tests = table.set_index(_SERIES)[["pearson", "low", "high"]]
    return tests.assign(is_positive=tests.pearson > 0, is_clear=tests.low > 0)


def correlation_claim(tests: pd.DataFrame, skipped: str = "") -> Claim:
    """Similarity and hit rate correlate positively for every model, dataset and search.

    Args:
        tests: as `correlation_tests` returns them.
        skipped: why the miniatures have no sentence embeddings; "" if they have.
    """
    paper, means = _of_the_paper(tests), tests.pearson[~_is_real(tests)].groupby(level="search", sort=False).mean()
    return Claim.judged(
        [
            Statement.of(f"positive with {search} similarity, the whole interval", name, part.is_clear)
            for search, name, part in _cases(paper)
        ],
        id="F9",
        artefact="Fig. 9",
        claim="Similarity and hit rate correlate positively for every model, dataset and search",
        reported="positive everywhere; no number",
        reproduced="; ".join(
            f"{model}/{dataset} {search} {row.pearson:.2f} [{row.low:.2f}, {row.high:.2f}]"
            for (search, model, dataset), row in entries_of(tests)
        ),
        panel=_PANEL,
        executor="recorded",
        why=f"With the paper's two similarities {int(paper.is_positive.sum())} of {len(paper)} coefficients are positive, "
        f"{int(paper.is_clear.sum())} with their whole interval. On real routing, trajectory against sentence embeddings: "
        + _on_real_routing(tests)
        + ". Means over the miniatures: "
        + ", ".join(f"{search} {mean:.2f}" for search, mean in means.items())
        + (f". Sentence embeddings were skipped there: {skipped}." if skipped else "."),
    )


def _on_real_routing(tests: pd.DataFrame) -> str:
    real = tests.pearson.xs(MIXTRAL, level="model")
    return "; ".join(
        f"{part}: {real['trajectory', part]:.2f} against {real[NOT_IN_THE_PAPER, part]:.2f}"
        for part in real[NOT_IN_THE_PAPER].index
    )


def _of_the_paper(tests: pd.DataFrame) -> pd.DataFrame:
    return tests[~_is_of(tests, NOT_IN_THE_PAPER)]


def _is_of(tests: pd.DataFrame, search: str) -> "pd.Series[bool]":
    return pd.Series(tests.index.get_level_values("search") == search, index=tests.index)


def _is_real(tests: pd.DataFrame) -> "pd.Series[bool]":
    return pd.Series(tests.index.get_level_values("model") == MIXTRAL, index=tests.index)


def _cases(paper: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(search, name of the routing, rows), the miniatures' and the real routing's apart."""
    return [
        (str(search), name, part)
        for search, series in paper.groupby(level="search", sort=False)
        for name, part in (("miniatures", series[~_is_real(series)]), ("Mixtral-8x7B", series[_is_real(series)]))
    ]
