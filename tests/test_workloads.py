"""The embedded prompts are what their generator makes, split 7:3, and foreign prompt files are read or refused clearly."""

import json

import pytest

from finemoe.errors import FinemoeError
from finemoe.paths import PROMPTS
from finemoe.workloads import GENRES, load_prompts, make_prompts


@pytest.mark.parametrize("genre", GENRES)
def test_committed_prompts_are_the_generators_to_the_byte(genre):
    expected = "".join(json.dumps(row) + "\n" for row in make_prompts(genre))
    assert (PROMPTS / f"{genre}.jsonl").read_bytes() == expected.encode()


@pytest.mark.parametrize("genre", GENRES)
def test_prompts_differ_and_split_seven_to_three(genre):
    rows = make_prompts(genre)
    splits = [row["split"] for row in rows]
    assert (splits.count("history"), splits.count("served")) == (280, 120)
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    assert len({row["topic"] for row in rows}) >= 10


def test_dialogues_are_longer_and_have_more_turns():
    questions, dialogues = ([row["prompt"] for row in make_prompts(genre)] for genre in GENRES)
    assert sum(map(len, dialogues)) > 1.5 * sum(map(len, questions))
    assert all(prompt.count("User:") == 1 for prompt in questions)
    assert sum(prompt.count("User:") > 1 for prompt in dialogues) > len(dialogues) / 2


def test_load_prompts_limits_and_keeps_the_share():
    prompts = load_prompts("questions", limit=20)
    assert set(prompts.column_names) == {"id", "prompt", "topic", "split"}
    assert list(prompts["split"]).count("history") == 14
    assert list(prompts["id"]) == list(load_prompts("questions", limit=20)["id"])


def test_foreign_file_gets_a_split_and_a_column_of_its_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {number}"}) + "\n" for number in range(10)))
    prompts = load_prompts(str(path), column="text")
    assert list(prompts["prompt"]) == [f"number {number}" for number in range(10)]
    assert list(prompts["split"]).count("served") == 3
    with pytest.raises(FinemoeError, match=r"no column 'prompt'; its columns are \['text'\]"):
        load_prompts(str(path))


def test_unknown_names_and_limits_are_refused_in_one_line():
    with pytest.raises(FinemoeError, match="unknown dataset 'qestions'; known: questions, dialogues"):
        load_prompts("qestions")
    with pytest.raises(FinemoeError, match="401 prompts asked for, the dataset has 400"):
        load_prompts("questions", limit=401)
