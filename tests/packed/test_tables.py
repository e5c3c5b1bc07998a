"""Both tables that docs/packed_experts.md gets from running things: what they say is what is there, and measured as they say."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

import finemoe
from finemoe.models.shipped import NAMES
from finemoe.paths import ROOT
from tests.packed import loss_table, support_matrix
from tests.packed.loss_table import Measured, agreement, growth, measured, perplexity, prefix_length
from tests.packed.support_matrix import Row, Watcher
from tests.runtime.models import build

# The support matrix


def test_the_page_names_every_checkpoint_and_counts_its_tests():
    """As they are collected now: after a change, `python -m tests.packed.support_matrix` writes the page anew."""
    command = [sys.executable, "-m", "tests.packed.support_matrix", "--collect"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    collected = json.loads(done.stdout)
    assert support_matrix.counts_on(support_matrix.PAGE.read_text(encoding="utf-8")) == collected
    assert len(collected) > 40


def test_the_page_says_what_is_refused_and_why():
    found = support_matrix.inside(support_matrix.PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert "\n".join(support_matrix.refused()) in found.group(1)


def row(family: str, **outcomes: int) -> Row:
    return Row(family, Counter(outcomes), memories={0.5, "bytes"}, dtypes={"auto", "float16"}, policies={"finemoe"})


def test_only_what_passed_has_a_row():
    watcher = Watcher(is_run=True)
    watcher.rows = {
        "good": row("g", collected=3, passed=3),
        "partly": row("p", collected=3, passed=2, skipped=1),
        "bad": row("b", collected=3, passed=2, failed=1),
        "not run": row("n", collected=3, passed=2),
        "left out": row("l", collected=3, skipped=3),
    }
    for one in watcher.rows.values():
        one.references |= {"auto": "Transformers", "float16": "ours"}
    watcher.rows["partly"].reasons["test_it[partly-0.5]"] = "too odd"
    watcher.blocks = {"Q4_0": Counter(collected=2, passed=2), "Q8_0": Counter(collected=2, passed=1, failed=1)}
    table = support_matrix.section(watcher)
    assert "| `good` | g |  |  | Transformers; ours in fp16 | 0.5, bytes | auto, fp16 | 1 |  |  | 3 |" in table
    assert "Left out: `partly`, 0.5: too odd." in table
    page = "\n".join((support_matrix.MARKS[0], table, support_matrix.MARKS[1]))
    assert support_matrix.counts_on(page) == {"good": 3, "partly": 3, "Q4_0": 2}


# What expert_format loses


@pytest.fixture(scope="module")
def models():
    """Two that differ a little."""
    one, other = build("mixtral"), build("mixtral")
    generator = torch.Generator().manual_seed(5)
    for parameter in other.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.003
    return one, other


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    """Texts of several lengths, in two batches."""
    rng = np.random.default_rng(3)
    return [rng.integers(2, 96, rng.integers(2, 12)).tolist() for _ in range(loss_table.BATCH + 3)]


@pytest.fixture(scope="module")
def both(models, rows) -> tuple[Measured, Measured]:
    one = measured(models[0], {"texts": rows}, rows[:5], None, None, num_tokens=6)
    return one, measured(models[1], {"texts": rows}, rows[:5], one, None, num_tokens=6)


@torch.no_grad()
def logits_after(model, tokens: list[int]) -> np.ndarray:
    """Of the next token, computed anew for every place."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double().numpy()


def nats(model, row: list[int]) -> float:
    total = 0.0
    for place in range(1, len(row)):
        logits = logits_after(model, row[:place])
        total += np.log(np.exp(logits).sum()) - logits[row[place]]
    return total


def test_perplexity_by_hand(models, rows, both):
    expected = [np.array([nats(model, row) for row in rows]) for model in models]
    count = sum(len(row) - 1 for row in rows)
    for one, by_hand in zip(both, expected, strict=True):
        assert one.nats["texts"] == pytest.approx(by_hand, rel=1e-5)
        value, low, high = perplexity(one, "texts")
        assert value == pytest.approx(np.exp(by_hand.sum() / count), rel=1e-5)
        assert low < value < high
    assert growth(both[1], both[0], "texts").value == pytest.approx(
        np.exp((expected[1] - expected[0]).sum() / count) - 1, rel=1e-2, abs=1e-5
    )


def test_a_model_agrees_with_itself(models, rows, both):
    again = measured(models[0], {"texts": rows}, rows[:5], both[0], None, num_tokens=6)
    assert tuple(agreement(again, both[0])) == (1, 1, 1)
    assert tuple(prefix_length(again, both[0])) == (6, 6, 6)
    assert tuple(growth(again, both[0], "texts")) == (0, 0, 0)


def test_agreement_by_hand(models, rows, both):
    """Greedy tokens, one forward of everything after another, and choices in the places of the first model's."""
    written = []
    for model in models:
        written.append([])
        for prompt in rows[:5]:
            tokens = list(prompt)
            while len(tokens) < len(prompt) + 6:
                tokens.append(int(logits_after(model, tokens).argmax()))
            written[-1].append(tokens[len(prompt) :])
    assert [both[0].tokens, both[1].tokens] == written
    equal, prefixes = 0, []
    for prompt, theirs, own in zip(rows[:5], *written, strict=True):
        for place, token in enumerate(theirs):
            equal += int(logits_after(models[1], [*prompt, *theirs[:place]]).argmax()) == token
        prefixes.append(next((place for place in range(6) if own[place] != theirs[place]), 6))
    assert 0 < equal < 30, "the models differ too little, or too much"
    assert agreement(both[1], both[0]).value == pytest.approx(equal / 30)
    assert prefix_length(both[1], both[0]).value == pytest.approx(np.mean(prefixes))


def test_what_is_written_ends_where_it_ends(models, rows, both):
    """With the first text's third token for an end."""
    end = both[0].tokens[0][2]
    found = loss_table.written_by(models[0], rows[:5], 6, end)
    assert found == [row[: row.index(end) + 1] if end in row else row for row in both[0].tokens]
    assert min(map(len, found)) <= 3


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([4], [1], 0), ([], [1], 0)],
)
def test_a_common_prefix(one, other, expected):
    assert loss_table.common_prefix(one, other) == loss_table.common_prefix(other, one) == expected


def test_the_page_has_a_row_for_every_model_and_format():
    found = loss_table.inside(loss_table.PAGE.read_text(encoding="utf-8"))
    assert found is not None
    cells = [line.strip("| ").split(" | ") for line in found.group(1).splitlines() if line.startswith("| ")][1:]
    assert [tuple(row[:2]) for row in cells] == [(name, form or "bf16") for name in NAMES for form in loss_table.FORMATS]
    for name, form, nbytes, *_ in cells:
        if name == "mixtral-mini":
            told = None if form == "bf16" else form
            _, engine = finemoe.load(name, 1.0, "on-demand", dtype="bfloat16", expert_format=told)
            with engine:
                assert f"{engine.records.host_bytes:,}" == nbytes
