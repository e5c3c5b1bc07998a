"""Prompt sets are read, embedded ones and foreign files, or refused clearly."""

import json
import sys

import pytest

from finemoe.errors import FinemoeError
from finemoe.workloads import read_prompts


def test_a_limit_keeps_the_share():
    prompts = read_prompts("questions", limit=20)
    assert all(set(prompt) == {"id", "prompt", "topic", "split"} for prompt in prompts)
    assert [prompt["split"] for prompt in prompts].count("history") == 14
    assert prompts == read_prompts("questions", limit=20)


def test_foreign_file_gets_a_split_and_a_column_of_its_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {number}"}) + "\n" for number in range(10)))
    prompts = read_prompts(str(path), column="text")
    assert [prompt["prompt"] for prompt in prompts] == [f"number {number}" for number in range(10)]
    assert [prompt["split"] for prompt in prompts].count("served") == 3
    with pytest.raises(FinemoeError, match=r"no column 'prompt'; its columns are \['text'\]"):
        read_prompts(str(path))


def test_a_relative_path_starts_at_the_root_where_the_working_folder_does_not_have_it(tmp_path, monkeypatch):
    monkeypatch.setattr("finemoe.workloads.ROOT", tmp_path)
    (tmp_path / "sets").mkdir()
    (tmp_path / "elsewhere" / "sets").mkdir(parents=True)
    (tmp_path / "sets" / "mine.jsonl").write_text('{"prompt": "of the root"}\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_prompts("sets/mine.jsonl")[0]["prompt"] == "of the root"
    (tmp_path / "elsewhere" / "sets" / "mine.jsonl").write_text('{"prompt": "from here"}\n')
    assert read_prompts("sets/mine.jsonl")[0]["prompt"] == "from here"


def test_unknown_names_and_limits_are_refused_in_one_line():
    with pytest.raises(FinemoeError, match=r"unknown dataset 'qestions'; did you mean 'questions'\? known: questions, dialogues"):
        read_prompts("qestions")
    with pytest.raises(FinemoeError, match="cannot take 401 prompts: the dataset has 400"):
        read_prompts("questions", limit=401)


def test_a_set_on_the_hub_names_the_extra_that_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(FinemoeError, match=r"datasets, which is not installed; install it with `pip install 'finemoe\[artifact"):
        read_prompts("owner/name")
