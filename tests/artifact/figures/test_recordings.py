"""Traces by model and dataset: the names are those of the files, the order is that of the paths."""

import pandas as pd
import pytest

from finemoe.artifact.figures.recordings import first_of_each_model, names_of, recordings, table_of
from tests.test_traces import make_trace


@pytest.fixture
def paths(tmp_path) -> list[str]:
    found = []
    for seed, name in enumerate(("b-mini-questions", "a-mini-questions", "b-mini-dialogues")):
        make_trace(seed).save(tmp_path / f"{name}.trace")
        found.append(str(tmp_path / f"{name}.trace"))
    return found


def test_a_dataset_is_what_follows_the_last_dash():
    assert names_of("results/traces/qwen-mini-questions.trace") == ("qwen-mini", "questions")


def test_traces_come_in_the_order_of_their_paths(paths):
    assert [(model, dataset) for model, dataset, _ in recordings(paths)] == [
        ("b-mini", "questions"),
        ("a-mini", "questions"),
        ("b-mini", "dialogues"),
    ]


def test_a_table_has_the_names_of_its_traces(paths):
    table = table_of(paths, lambda trace: pd.DataFrame({"first": [int(trace.expert_ids[0, 0, 0])]}))
    assert table.columns.tolist() == ["first", "model", "dataset"]
    assert table["first"].tolist() == [int(make_trace(seed).expert_ids[0, 0, 0]) for seed in range(3)]
    assert table.index.tolist() == [0, 1, 2]


def test_the_first_trace_of_each_model_has_what_was_served(paths):
    first = first_of_each_model(paths)
    assert list(first) == ["b-mini", "a-mini"]
    assert first["b-mini"].request_ids == make_trace(0).split("served").request_ids
    assert (first["b-mini"].expert_ids == make_trace(0).split("served").expert_ids).all()
