"""CSVs of routing: columns by many names and in any order, rows in any order, and refusals that name the row."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace, read_trace, table
from tests.importers.written import ARRAYS, COLUMNS, assert_is, assert_same, make, write_csv

TABLE = """Request ID,token-index,Layer,expert,gate.weight,comment
b,0,0,3,0.25,x
b,0,0,1,0.75,x
b,0,2,0,0.5,x
b,0,2,2,0.5,x
a,7,0,2,3,x
a,7,0,0,1,x
a,7,2,1,1,x
a,7,2,3,1,x
"""


def write(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_by_hand(tmp_path):
    found = import_trace(write(tmp_path, TABLE), None, Options())
    trace = found.trace
    assert trace.request_ids == ("a", "b")
    assert trace.expert_ids.tolist() == [[[2, 0], [1, 3]], [[1, 3], [0, 2]]]
    assert trace.expert_probs.tolist() == [[[0.75, 0.25], [0.5, 0.5]], [[0.75, 0.25], [0.5, 0.5]]]
    assert (trace.step.tolist(), trace.phase.tolist(), trace.offsets.tolist()) == ([0, 0], [1, 1], [0, 1, 2])
    assert any("layers without rows are left out (1)" in note for note in found.notes)
    assert any("every row is read as a separate decode step" in note for note in found.notes)


@pytest.mark.parametrize("change", [("\t", "\t"), (";", ";")])
def test_other_delimiters_and_line_ends(tmp_path, change):
    delimiter, _ = change
    other = write(tmp_path, "\ufeff# made by hand\r\n" + TABLE.replace(",", delimiter).replace("\n", "\r\n"), "b.csv")
    assert_same(read_trace(other), read_trace(write(tmp_path, TABLE)))


def test_quoted_cells(tmp_path):
    text = TABLE.replace("b,0", '"b",0').replace(",x\n", ',"a, ""b"""\n')
    assert_same(read_trace(write(tmp_path, text, "b.csv")), read_trace(write(tmp_path, TABLE)))


def test_side_by_side(tmp_path):
    """Numbered columns are the K of one row; whole numbers may be written as pandas writes them beside empty cells."""
    text = "step,layer,expert_0,expert_1,weight_0,weight_1\n0.0,0,4,2,0.25,0.75\n1.0,0,1,3,1,1\n"
    trace = read_trace(write(tmp_path, text))
    assert trace.expert_ids.tolist() == [[[2, 4]], [[1, 3]]]
    assert trace.expert_probs.tolist() == [[[0.75, 0.25]], [[0.5, 0.5]]]


def test_rows_of_one_step_are_an_iteration_where_tokens_are_numbered_too(tmp_path):
    text = "step,token,layer,expert\n0,0,0,1\n0,1,0,2\n4,0,0,3\n"
    trace = read_trace(write(tmp_path, text))
    assert trace.step.tolist() == [0, 0, 1]
    assert [(step, rows.stop - rows.start) for _, step, rows in trace.iterations()] == [(0, 2), (1, 1)]


@pytest.mark.parametrize(("name", "prompt"), [("phase", "0"), ("phase", "prompt"), ("is_prefill", "1"), ("Is_Prompt", "True")])
def test_phases_in_other_words(tmp_path, name, prompt):
    decode = {"0": "1", "prompt": "generation", "1": "0", "True": "False"}[prompt]
    text = f"token,layer,expert,{name}\n0,0,1,{prompt}\n1,0,2,{prompt}\n2,0,3,{decode}\n"
    trace = read_trace(write(tmp_path, text))
    assert (trace.phase.tolist(), trace.step.tolist()) == ([0, 0, 1], [0, 0, 1])


def test_weights_that_were_not_recorded(tmp_path):
    for empty in ("nan", ""):
        trace = read_trace(write(tmp_path, f"token,layer,expert,weight\n0,0,3,{empty}\n0,0,1,{empty}\n"))
        assert (trace.has_weights, trace.expert_ids.tolist()) == (False, [[[1, 3]]])
        assert trace.expert_probs.tolist() == [[[0.5, 0.5]]]


def test_the_length_of_prompts_can_be_given(tmp_path):
    trace = read_trace(write(tmp_path, "token,layer,expert\n0,0,1\n1,0,2\n2,0,3\n"), prompt_tokens=2)
    assert (trace.phase.tolist(), trace.step.tolist()) == ([0, 0, 1], [0, 0, 1])


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), columns=st.permutations(COLUMNS), shape=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_order_of_rows_and_columns_does_not_matter(tmp_path_factory, seed, columns, shape):
    layers, top_k = shape
    one = make(layers=layers, top_k=top_k, seed=seed)
    rows = one.long_rows()
    np.random.default_rng(seed).shuffle(rows)
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    trace = read_trace(write_csv(path, one, tuple(columns), rows), num_experts=7)
    assert_is(trace, one)


def test_blocks_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_BLOCK_BYTES", 60)
    one = make()
    rows = one.long_rows()
    np.random.default_rng(1).shuffle(rows)
    path = write_csv(tmp_path / "a.csv", one, rows=rows)
    trace = read_trace(path)
    assert_is(trace, one)
    monkeypatch.undo()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(trace, name), getattr(read_trace(path), name))


def changed(row: int, place: int, value: str):
    def change(lines: list[str]) -> list[str]:
        cells = lines[row].split(",")
        cells[place] = value
        return [*lines[:row], ",".join(cells), *lines[row + 1 :]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(3, 3, "one"), r"row 3: expert is 'one', which is not a whole number"),
        (changed(3, 3, "1.5"), r"row 3: expert is '1.5', which is not a whole number"),
        (changed(3, 3, "-1"), r"row 3: expert is -1; it counts from 0, so this row was not recorded"),
        (changed(3, 3, "70000"), r"row 3: expert 70000; no layer has so many"),
        (changed(3, 3, ""), r"row 3: expert is '', which is not a whole number"),
        (changed(4, 4, "much"), r"row 4: gate.weight is 'much', which is not a number"),
        (changed(4, 4, "-0.5"), r"row 4: a weight is -0.5; weights are shares of at least 0"),
        (changed(4, 4, "nan"), r"row 4: a weight is nan; .* given in every row or in none"),
        (changed(4, 4, "inf"), r"row 4: a weight is inf"),
        (lambda lines: [*lines[:5], "a,7,0", *lines[6:]], r"row 5 has 3 values, but there are 6 columns"),
        (lambda lines: [*lines, lines[1]], r"row 9: request b, token 0, layer 0 has more than 2 experts"),
        (
            lambda lines: lines[:-1],
            r"request b, token 0, layer 2 has 1 experts, not 2; rows are missing|request a, token 7, layer 2",
        ),
        (changed(2, 3, "3"), r"expert_ids name expert 3 twice in row 1, layer 0"),
        (lambda lines: lines[:1], r"has no rows"),
        (
            lambda lines: [lines[0].replace("Layer", "storey"), *lines[1:]],
            r"no column holds the layer; its columns are Request ID",
        ),
        (lambda lines: [lines[0].replace("expert", "specialist"), *lines[1:]], r"no column holds the expert"),
        (lambda lines: [lines[0].replace("token-index", "time"), *lines[1:]], r"no column numbers the tokens; name one 'token'"),
        (
            lambda lines: [lines[0].replace("comment", "layer_id"), *lines[1:]],
            r"columns 'Layer' and 'layer_id' both hold the layer",
        ),
        (changed(1, 4, "0"), None),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path, change, message):
    path = write(tmp_path, "\n".join(change(TABLE.strip().split("\n"))) + "\n")
    if message is None:
        assert read_trace(path).expert_probs[1, 0].tolist() == [1, 0]  # a weight may be 0
        return
    with pytest.raises(FinemoeError, match=rf"a.csv: ({message})"):
        read_trace(path)


def test_weights_of_0_alone(tmp_path):
    with pytest.raises(FinemoeError, match=r"token 0, layer 0: its weights are all 0"):
        read_trace(write(tmp_path, "token,layer,expert,weight\n0,0,3,0\n0,0,1,0\n"))


def test_a_phase_that_changes_within_a_token(tmp_path):
    text = "token,layer,expert,phase\n0,0,1,prefill\n0,1,1,decode\n"
    with pytest.raises(FinemoeError, match=r"row 2: request 0 has another phase in another row"):
        read_trace(write(tmp_path, text))
    with pytest.raises(FinemoeError, match=r"row 1: phase is 'prelude'; expected prefill or decode"):
        read_trace(write(tmp_path, text.replace("prefill", "prelude")))


def test_gzipped_and_misnamed(tmp_path):
    path = tmp_path / "table.bin"
    path.write_bytes(gzip.compress(TABLE.encode()))
    assert_same(read_trace(path), read_trace(write(tmp_path, TABLE)))


def test_tables_that_would_take_more_memory_than_they_are_worth(tmp_path):
    rows = [f"{token},{token},1" for token in range(100)]
    with pytest.raises(FinemoeError, match=r"has 100 experts for 100 tokens x 100 layers; every token needs K in every layer"):
        read_trace(write(tmp_path, "\n".join(["token,layer,expert", *rows]) + "\n"))
    with pytest.raises(FinemoeError, match=r"row 2: layer is 1000000000; it must be in 0..65535"):
        read_trace(write(tmp_path, "token,layer,expert\n0,0,1\n0,1000000000,1\n"))
