"""Long prompts over paced links: what a row says, which cells there are, and that interrupted runs continue."""

import csv
import statistics
from collections import defaultdict

import pandas as pd
import pytest

from finemoe.artifact.docs.long_prompts import long_prompt_blocks, long_prompt_numbers
from finemoe.artifact.pipeline import long_prompts
from finemoe.artifact.pipeline.long_prompts import EXPERT_MEMORIES, LINKS, POLICIES, Cell, Subject, cells, measured, summary
from finemoe.errors import FinemoeError
from finemoe.paths import DATA
from finemoe.runtime.options import STREAM_PROMPTS_FROM

NUM_TOKENS = STREAM_PROMPTS_FROM + 4


@pytest.fixture(scope="module")
def subject():
    one = Subject("qwen-mini", width=1, num_tokens=NUM_TOKENS)
    yield one
    one.close()


def test_every_cell_is_streamed_and_one_memory_also_not():
    found = list(cells())
    assert len(set(found)) == len(found) == len(LINKS) * len(POLICIES) * (len(EXPERT_MEMORIES) + 1)
    assert {cell.expert_memory for cell in found if not cell.streaming} == {long_prompts.COMPARED_AT}


def test_a_row_has_the_bytes_and_times_of_one_prompt(subject):
    rate = 2 * subject.demanded_bytes()  # half a second for what a prompt demands
    rows = [row for is_on in (True, False) for row in measured(subject, Cell("any", 0.1, "on-demand", is_on), rate)]
    assert [row["prompt"] for row in rows] == [0, 1, 0, 1]
    for row in rows:
        record_bytes = row["demanded_bytes"] / (row["hits"] + row["late"] + row["misses"])
        assert record_bytes == subject.demanded_bytes() / (rows[0]["hits"] + rows[0]["late"] + rows[0]["misses"])
        assert row["moved_bytes"] % record_bytes == 0
        assert row["link_s"] == row["moved_bytes"] / rate
        assert row["ratio"] == row["ttft_s"] / max(row["link_s"], row["compute_s"])
    streamed, plain = rows[0], rows[2]
    assert streamed["demanded_bytes"] == plain["demanded_bytes"] == plain["moved_bytes"]
    assert plain["hits"] == plain["late"] == 0, "an empty cache"
    assert streamed["moved_bytes"] >= streamed["demanded_bytes"]


def test_wrong_logits_are_refused(subject, monkeypatch):
    monkeypatch.setattr(subject, "expected", [one + 1 for one in subject.expected])
    with pytest.raises(FinemoeError, match="logits differ"):
        measured(subject, Cell("any", 0.5, "on-demand", True), 1e9)


def test_prompts_longer_than_the_text_are_refused():
    with pytest.raises(FinemoeError, match="num_tokens is at most"):
        Subject("qwen-mini", width=1, num_tokens=10**6)


def test_an_interrupted_run_continues(subject, monkeypatch, tmp_path, capsys):
    cell = Cell("balanced", 0.5, "on-demand", True)
    monkeypatch.setattr(long_prompts, "cells", lambda: iter([cell]))
    monkeypatch.setattr(long_prompts, "Subject", lambda *_: subject)
    monkeypatch.setattr(subject, "close", lambda: None)
    output, told = tmp_path / "table.csv", {"model": "qwen-mini", "width": 1, "num_tokens": NUM_TOKENS, "afresh": False}
    long_prompts.write_table(output, rounds=1, **told)
    first = pd.read_csv(output)
    long_prompts.write_table(output, rounds=2, **told)
    both = pd.read_csv(output)
    assert list(both["round"]) == [0, 0, 1, 1]
    pd.testing.assert_frame_equal(both.head(2), first)
    assert both.bytes_per_s.nunique() == 1, "the links of the first run"
    assert list(summary(both)["rounds"]) == [2, 2]
    assert "balanced" in capsys.readouterr().out
    with pytest.raises(FinemoeError, match="add --afresh"):
        long_prompts.write_table(output, rounds=2, **(told | {"width": 2}))


def test_the_page_counts_what_the_table_has():
    ratios = defaultdict(list)
    with (DATA / "reference" / "long_prompts_measured.csv").open() as file:
        for row in csv.DictReader(file):
            if row["streaming"] == "True":
                bar_s = max(float(row["moved_bytes"]) / float(row["bytes_per_s"]), float(row["compute_s"]))
                assert float(row["ratio"]) == pytest.approx(float(row["ttft_s"]) / bar_s, rel=1e-4)
                key = row["link"], float(row["expert_memory"]), row["policy"], row["prompt"]
                ratios[key].append(float(row["ratio"]))
    medians = {key: statistics.median(values) for key, values in ratios.items()}
    numbers = {number.name: number.text for number in long_prompt_numbers()}
    assert numbers["long_prompts_cells"] == str(len(medians))
    assert numbers["long_prompts_within"] == str(sum(value <= 1.1 for value in medians.values()))
    lines = long_prompt_blocks()["long prompts"].splitlines()[2:]
    for line, (link, memory) in zip(lines, [(link, memory) for link in LINKS for memory in EXPERT_MEMORIES], strict=True):
        cells = [f"{medians[link, memory, name, '0']:.2f}, {medians[link, memory, name, '1']:.2f}" for name in POLICIES]
        assert line == f"| {link} | {100 * memory:.0f} % | {' | '.join(cells)} |"
