"""Prompt sets as tables of the `datasets` library, for notebooks that choose rows and columns of them."""

from typing import Any

from datasets import Dataset

from finemoe.workloads import read_prompts


def load_prompts(source: str, **choice: Any) -> Dataset:
    """A prompt set with the columns id, prompt, topic, split.

    Args:
        source, choice: as `finemoe.workloads.read_prompts` takes them.
    Raises:
        FinemoeError: as there.
    """
    return Dataset.from_list(read_prompts(source, **choice))
