"""Traces by model and dataset: the names are those of the files, the order is that of the paths."""

import pandas as pd
import pytest

from finemoe.artifact.figures.f3a import map_table
from finemoe.artifact.figures.recordings import first_of_each_model, names_of, recordings, table_of
from tests.test_traces import make_trace


@pytest.fixture
def paths(tmp_path) -> list[str]:
    found = []
    for seed, name in enumerate(("b-mini-questions", "a-mini-questions", "b-mini-dialogues")):
        make_trace(seed).save(tmp_path / f"{name}.trace")
        found.append(str(tmp_path / f"{name}.trace"))
    return found


def test_a_dataset_is_what_follows_the_model():
    assert names_of("results/traces/qwen-mini-questions.trace") == ("qwen-mini", "questions")
    assert names_of("results/traces/qwen-mini-arena-hard.trace") == ("qwen-mini", "arena-hard")
    assert names_of("results/traces/gpt-oss-20b-mixed.trace") == ("gpt-oss-20b", "mixed")


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


def test_figure_3a_passes_over_requests_that_end_with_their_first_token():
    trace = make_trace(0, lengths=(2, 5, 7))  # two tokens are a prefill alone
    table = map_table({"a": trace}, 0, [1, 2])
    pd.testing.assert_frame_equal(table, map_table({"a": trace.select([1, 2])}, 0, [1, 2]))
    assert set(table.kind) == {"mean of 3 iterations", "iteration 1", "iteration 2"}
