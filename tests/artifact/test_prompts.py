"""Prompt sets as tables hold the rows of the prompt sets."""

from finemoe.artifact.prompts import load_prompts
from finemoe.workloads import read_prompts


def test_a_table_has_the_rows_and_columns_of_the_set():
    prompts = load_prompts("questions", limit=20)
    assert set(prompts.column_names) == {"id", "prompt", "topic", "split"}
    assert list(prompts) == read_prompts("questions", limit=20)
