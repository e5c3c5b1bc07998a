"""Prompt sets as `datasets` tables, for notebooks that select rows and columns."""

from typing import Any

from datasets import Dataset

from finemoe.workloads import read_prompts


def load_prompts(source: str, **choice: Any) -> Dataset:
    """A prompt set with the columns id, prompt, topic, split.

    Args:
        source, choice: passed to `finemoe.workloads.read_prompts`.
    Raises:
        FinemoeError: as in `read_prompts`.
    """
    return Dataset.from_list(read_prompts(source, **choice))
