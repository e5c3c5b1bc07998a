"""The same routing in two formats gives the same advice, down to the last digit."""

import json

import pytest

import finemoe
from finemoe.importers import read_trace
from tests.importers import written

LAYERS, EXPERTS = 3, 7
WITH_WEIGHTS = {
    "csv": lambda folder, one: written.write_csv(folder / "a.csv", one),
    "npz": lambda folder, one: written.write_npz(folder / "a.npz", one),
    "jsonl": lambda folder, one: written.write_jsonl(folder / "a.jsonl", written.request_objects(one)),
}
IDS_ALONE = {
    "npz": lambda folder, one: written.write_npz(folder / "a.npz", one, weights=None),
    "vllm": lambda folder, one: written.write_jsonl(folder / "vllm.jsonl", written.vllm_responses(one)),
    "csv": lambda folder, one: written.write_csv(folder / "a.csv", one, ("layer", "expert", "token", "request", "phase")),
}


@pytest.mark.parametrize("writers", [WITH_WEIGHTS, IDS_ALONE], ids=["weights", "ids"])
def test_formats_give_one_answer(tmp_path, writers):
    one = written.make(LAYERS, EXPERTS)
    answers = set()
    for name, write in writers.items():
        (folder := tmp_path / name).mkdir()
        found = finemoe.advise(read_trace(write(folder, one), num_experts=EXPERTS)).to_dict()
        assert found["trace"].pop("model") is not None  # which not every format has
        answers.add(json.dumps(found))
    assert len(answers) == 1
