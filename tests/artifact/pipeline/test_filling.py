"""Names of the table of notebooks become paths, and parameters get values by name."""

import pytest

from finemoe.artifact.pipeline.config import load
from finemoe.artifact.pipeline.filling import Filling, parameter_names
from finemoe.artifact.pipeline.table import Entry, read_table
from finemoe.paths import ROOT

FOLDERS = {"results": "r", "figures": "f", "miniatures": "m"}


def filling(**changed):
    config = load() | {"models": ["a", "b"], "datasets": ["x"], "prefetch_distance": {"a": 3, "b": 4}} | changed
    lists = {"MODELS": config["models"], "DATASETS": config["datasets"], "DATASET": config["datasets"][0], "MACHINES": ["one"]}
    return Filling(config, FOLDERS, lists)


def test_upper_case_stands_for_every_element_and_lower_case_stays_a_wildcard():
    pattern = "{results}/{MODELS}-{DATASETS}/{model}.csv"
    assert filling(datasets=["x", "y"]).paths(pattern) == [
        "r/a-x/{model}.csv",
        "r/a-y/{model}.csv",
        "r/b-x/{model}.csv",
        "r/b-y/{model}.csv",
    ]


def test_a_list_of_one_stays_a_list_and_a_text_stays_one_path():
    assert filling(models=["a"]).paths("{miniatures}/{MODELS}") == ["m/a"]
    assert filling().paths("{miniatures}/{DATASET}") == "m/x"
    assert filling().paths("data/plain.csv") == "data/plain.csv"


def test_files_are_looked_up_without_hidden_ones():
    found = filling().paths(["data/hardware/*.yaml", "data/models/sizes.json"])
    shown = sorted(path.name for path in (ROOT / "data" / "hardware").glob("*.yaml") if not path.name.startswith("."))
    assert found == [f"data/hardware/{name}" for name in shown] + ["data/models/sizes.json"]


def test_parameters_come_from_files_then_wildcards_then_the_configuration():
    entry = read_table()["run_offloading"]
    outputs = {"table": "r/table.csv", "measured": "r/measured.csv"}
    inputs = {"store": "r/s", "trace": "r/t", "weights": ["m/b/config.json"], "notebook": "n", "code": []}
    found = filling().parameters(entry, {"model": "b", "dataset": "x"}, inputs, outputs)
    assert (found["table"], found["store"], found["model"], found["prefetch_distance"]) == ("r/table.csv", "r/s", "m/b", 4)
    assert (found["dataset"], found["column"], found["seed"]) == ("x", "prompt", load()["seed"])
    assert set(found) == set(parameter_names("run_offloading"))


def test_only_the_configured_testbed_has_limits_in_gigabytes():
    entry = read_table()["simulate_testbed"]
    here, there = (
        filling().parameters(entry, {"testbed": name, "model": "a", "dataset": "x"}, {"trace": "t"}, {"table": "c"})
        for name in (load()["testbed"], load()["high_end_testbed"])
    )
    assert here["cache_limits_gb"] == load()["cache_limits_gb"]
    assert there["cache_limits_gb"] == []


@pytest.mark.parametrize(("traces", "expected"), [("{MODELS}-{DATASETS}", [3, 3, 4, 4]), ("{MODELS}-{DATASET}", [3, 4])])
def test_every_trace_has_its_models_distance(traces, expected):
    entry = Entry("f14a", "f14a", inputs={"traces": traces})
    found = filling(datasets=["x", "y"]).parameters(entry, {}, {"traces": ["t"]}, {})
    assert found["prefetch_distances"] == expected


def test_a_notebook_with_settings_of_its_own_gets_no_others():
    entry = read_table()["quickstart"]
    found = filling().parameters(entry, {}, {}, {"figure": "f/quickstart"})
    assert found == {"model": "m/a", "max_new_tokens": load()["served_tokens"], "figure": "f/quickstart"}
