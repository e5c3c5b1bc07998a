"""The embedded prompts are what their generator makes, split 7:3."""

import json

import pytest

from finemoe.artifact.miniatures.prompts import make_prompts
from finemoe.paths import PROMPTS
from finemoe.workloads import GENRES


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
