"""Figures 8 and 9 on real routing: Mixtral-8x7B on MMLU's test questions (request level, Apache-2.0).

The data is not part of the project. `python -m finemoe.artifact.analysis.mixtral` computes the tables that are shipped under
data/reference/, so that the figures can show this panel anywhere. Prompts are compared only within a subject, because all prompts
of a subject begin with the same five worked examples, nine tenths of their tokens. Each comparison is made twice: with the whole
prompts, and without the part that a subject's prompts share. Sentence embeddings cover the question and its choices, without the
examples.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from finemoe.artifact.analysis.similarity import PromptPairs, grouped_correlation, grouped_hit_rate, pairs_of
from finemoe.artifact.plotting import save_table
from finemoe.artifact.sentences import PACKAGED, embed_sentences
from finemoe.importers.request_table import MODEL, RequestTable, load_mmlu, sample_folder
from finemoe.paths import DATA

WHOLE, BEYOND = "MMLU, whole prompts", "MMLU, less shared part"
# To fit into 2,048 tokens, the publisher dropped examples from these subjects' longest prompts: they share less, or nothing.
SHORTENED = ("high_school_european_history", "high_school_us_history", "professional_law")


def subject_pairs(table: RequestTable, sentences: np.ndarray) -> dict[str, list[PromptPairs]]:
    """Pairs within each group, by the compared part of the prompts (WHOLE, BEYOND); sentences [R, h].

    A prompt's "trajectory" consists of its expert shares, because the data has only one map per request.
    """
    counts = {WHOLE: table.counts, BEYOND: table.counts_beyond_shared()}
    groups = list(table.rows_of_groups().values())
    return {
        part: [pairs_of({"trajectory": all_[rows], "sentence": sentences[rows]}, all_[rows], table.top_k) for rows in groups]
        for part, all_ in counts.items()
    }


def hit_rate_table(pairs: dict[str, list[PromptPairs]], num_bins: int = 8) -> pd.DataFrame:
    """Figure 8's rows."""
    parts = [
        grouped_hit_rate(groups, search, num_bins).assign(search=search, model=MODEL, dataset=part)
        for part, groups in pairs.items()
        for search in groups[0].similarity
    ]
    return pd.concat(parts, ignore_index=True)


def correlation_table(pairs: dict[str, list[PromptPairs]]) -> pd.DataFrame:
    """Figure 9's rows."""
    records = []
    for part, groups in pairs.items():
        for search in groups[0].similarity:
            found = grouped_correlation(groups, search)
            bounds = {"pearson": float(found.value), "low": float(found.low), "high": float(found.high)}
            records.append({"model": MODEL, "dataset": part, "search": search, **bounds})
    return pd.DataFrame(records)


def write_tables(
    folder: Annotated[Path | None, typer.Argument(help="with the two files of the sample; default: next to the checkout")] = None,
    output: Annotated[Path, typer.Option(help="output folder")] = DATA / "reference",
    sentence_model: Annotated[str, typer.Option(help="local folder, hub id or PyPI package")] = PACKAGED,
) -> None:
    """Compute the real panels of Figures 8 and 9 and write them as CSV."""
    folder = folder or sample_folder()
    table = load_mmlu(folder / "mmlu_request_level.npz", folder / "mmlu_questions.jsonl.gz").without(SHORTENED)
    pairs = subject_pairs(table, embed_sentences(table.texts, sentence_model))
    save_table(hit_rate_table(pairs), output / "f8_mixtral.csv")
    save_table(correlation_table(pairs), output / "f9_mixtral.csv")
    typer.echo(correlation_table(pairs).to_string(index=False))


if __name__ == "__main__":
    typer.run(write_tables)
