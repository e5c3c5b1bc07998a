"""The recorded traces behind a figure, and the model and dataset that each of them belongs to."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace


def recordings(paths: Sequence[str]) -> Iterator[tuple[str, str, RoutingTrace]]:
    """Load traces one at a time.

    Args:
        paths: files named `MODEL-DATASET.trace`; relative paths start at the repository root.
    Yields:
        (model, dataset, trace).
    """
    for path in paths:
        yield *names_of(path), RoutingTrace.load(ROOT / path)


def names_of(path: str) -> tuple[str, str]:
    """The model and the dataset in the file name of a trace. Both may have hyphens; a miniature's name ends in "-mini"."""
    stem = Path(path).stem
    model, mark, dataset = stem.partition("-mini-")
    if mark:
        return f"{model}-mini", dataset
    model, _, dataset = stem.rpartition("-")
    return model, dataset


def table_of(paths: Sequence[str], analyse: Callable[[RoutingTrace], pd.DataFrame]) -> pd.DataFrame:
    """The rows that `analyse` returns for each trace, with the columns model and dataset appended."""
    tables = [analyse(trace).assign(model=model, dataset=dataset) for model, dataset, trace in recordings(paths)]
    return pd.concat(tables, ignore_index=True)


def first_of_each_model(paths: Sequence[str]) -> dict[str, RoutingTrace]:
    """The served requests of the first trace of each model, by model."""
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(names_of(path)[0], path)
    return {model: RoutingTrace.load(ROOT / path).split("served") for model, path in first.items()}
