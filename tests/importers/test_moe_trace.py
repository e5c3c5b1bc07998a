"""llama.cpp's moe-trace, written as pull request 28544 writes it: batch by batch, layer by layer, with its misread prompts."""

import gzip
import re

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, moe_trace, read_trace
from tests.importers.written import assert_same

LAYERS, EXPERTS, TOP_K, PROMPT, GENERATED = (1, 2, 3), 6, 2, 4, 5


def routed(seed: int = 0) -> np.ndarray:
    """[tokens, L, J], experts by descending score."""
    return np.argsort(np.random.default_rng(seed).random((PROMPT + GENERATED, len(LAYERS), EXPERTS)), axis=-1)


def lines_of(ranks: np.ndarray, prompt_batch: int = PROMPT) -> list[str]:
    lines = []
    batches = [range(at, min(at + prompt_batch, PROMPT)) for at in range(0, PROMPT, prompt_batch)]
    for batch in [*batches, *([token] for token in range(PROMPT, PROMPT + GENERATED))]:
        for place, layer in enumerate(LAYERS):
            tokens = list(batch) if layer != LAYERS[-1] else list(batch)[-1:]  # only the last token's logits are wanted
            flat = ranks[tokens, place].reshape(-1)[: len(tokens) * TOP_K]  # across the rows' gaps, as the example reads
            lines += [f"{layer},{expert}" for expert in flat]
    return lines


def write(tmp_path, lines, name="moe_trace.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("prompt_batch", [PROMPT, 3, 2])
@pytest.mark.parametrize("block_bytes", [moe_trace._BLOCK_BYTES, 9])
def test_the_generated_tokens_are_found(tmp_path, monkeypatch, prompt_batch, block_bytes):
    monkeypatch.setattr(moe_trace, "_BLOCK_BYTES", block_bytes)
    ranks = routed()
    found = import_trace(write(tmp_path, lines_of(ranks, prompt_batch)), None, Options())
    assert found.format == "moe-trace"
    assert found.notes[0] == "K = 2 is taken from the smallest batch"
    assert any("batches of several tokens are left out" in note for note in found.notes)
    assert any("layers without rows are left out (0)" in note for note in found.notes)
    trace = found.trace
    extra = 1 if prompt_batch == 3 else 0  # a prompt's last batch of one token looks like a generated one, and is right
    np.testing.assert_array_equal(trace.expert_ids[extra:], np.sort(ranks[PROMPT:, :, :TOP_K], axis=-1))
    np.testing.assert_array_equal(trace.expert_ids[:extra], np.sort(ranks[PROMPT - extra : PROMPT, :, :TOP_K], axis=-1))
    assert (trace.has_weights, trace.num_requests, set(trace.phase.tolist())) == (False, 1, {1})


def test_with_a_header_k_given_and_gzip(tmp_path):
    lines = lines_of(routed())
    plain = read_trace(write(tmp_path, lines))
    assert_same(read_trace(write(tmp_path, ["layer,expert", *lines], "b.csv"), top_k=2), plain)
    (tmp_path / "c.bin").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert_same(read_trace(tmp_path / "c.bin"), plain)


def test_the_forks_table_is_read_as_any_other(tmp_path):
    ranks = routed()
    lines = ["phase,token,layer,rank,expert"]
    lines += [
        f"{'prefill' if token < PROMPT else 'decode'},{token},{layer},{rank},{ranks[token, place, rank]}"
        for token in range(len(ranks))
        for place, layer in enumerate(LAYERS)
        for rank in range(TOP_K)
    ]
    found = import_trace(write(tmp_path, lines), None, Options())
    assert found.format == "csv"
    np.testing.assert_array_equal(found.trace.expert_ids, np.sort(ranks[:, :, :TOP_K], axis=-1))
    assert found.trace.step.tolist() == [0] * PROMPT + [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:30], "2;5", *lines[30:]], "row 31 is '2;5'; expected layer,expert as two whole numbers"),
        (lambda lines: [*lines[:30], "2,-1", *lines[30:]], "row 31 is '2,-1'; expected layer,expert"),
        (lambda lines: [*lines[:30], "2,70000", *lines[30:]], "row 31: expert 70000; no layer has so many"),
        (lambda lines: lines[:-2], "row 45: this batch has layers 1..2, but the first 1..3; the file is truncated"),
        (
            lambda lines: lines[:-1],
            "row 47: a layer has 1 rows here, which is not a multiple of K = 2; rows are missing",
        ),
        (lambda lines: [*lines[:20], *lines[22:]], "row 21: this batch has layers 1, 3, but the first 1..3"),
        (
            lambda lines: lines[: 2 * PROMPT * TOP_K + TOP_K],
            "has only prompts, for which this recorder writes wrong",
        ),
        (
            lambda lines: [line for line in lines if line[0] == "1"],
            "has only one layer, so the end of a token cannot be determined",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path, change, message):
    path = write(tmp_path, change(lines_of(routed())))
    with pytest.raises(FinemoeError, match=rf"moe_trace.csv: ({message})"):
        read_trace(path)


def test_a_k_that_does_not_fit(tmp_path):
    path = write(tmp_path, lines_of(routed()))
    with pytest.raises(FinemoeError, match=re.escape("row 17: a layer has 2 rows here, which is not a multiple of K = 3")):
        read_trace(path, top_k=3)
