import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, import_trace
from finemoe.importers.route_trace import load_route_trace, sample_path
from finemoe.traces import DECODE, PREFILL

LAYERS, EXPERTS, TOP_K = 2, 5, 2
HEADER = ["# route_trace v1", f"# model=tiny.gguf arch=tiny n_layer={LAYERS} n_expert={EXPERTS} n_expert_used={TOP_K}"]
COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"


def rows_of(tokens: list[tuple[int, int, int]]) -> list[str]:
    """Layer by layer within a prompt, as the publisher writes them; experts follow from the place."""
    return [
        f"{turn},{phase},{step},{layer},{slot},{(step + layer + slot) % EXPERTS},{0.75 - 0.5 * slot},0,10"
        for layer in range(LAYERS)
        for turn, phase, step in tokens
        for slot in range(TOP_K)
    ]


TOKENS = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 3), (1, 0, 0), (1, 1, 1)]


def write(path: Path, rows: list[str], header: list[str] = HEADER) -> Path:
    path.write_text("\n".join([*header, COLUMNS, *rows]) + "\n")
    return path


def test_it_is_read_row_by_row(tmp_path):
    trace = load_route_trace(write(tmp_path / "x.csv", rows_of(TOKENS)), model="tiny")
    assert (trace.num_layers, trace.num_experts, trace.top_k, trace.model) == (LAYERS, EXPERTS, TOP_K, "tiny")
    assert trace.offsets.tolist() == [0, 4, 6]
    assert trace.phase.tolist() == [PREFILL, PREFILL, DECODE, DECODE, PREFILL, DECODE]
    assert [(request, step, rows.stop - rows.start) for request, step, rows in trace.iterations()] == [
        *((0, 0, 2), (0, 1, 1), (0, 2, 1)),
        *((1, 0, 1), (1, 1, 1)),
    ]
    for row, (_, _, step) in enumerate(TOKENS):
        for layer in range(LAYERS):
            assert trace.expert_ids[row, layer].tolist() == [(step + layer + slot) % EXPERTS for slot in range(TOP_K)]
    assert np.array_equal(np.unique(trace.expert_probs), [0.25, 0.75])


def test_gzipped_is_the_same(tmp_path):
    plain = write(tmp_path / "x.csv", rows_of(TOKENS))
    packed = tmp_path / "x.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = load_route_trace(plain), load_route_trace(packed)
    assert np.array_equal(one.expert_ids, other.expert_ids)
    assert np.array_equal(one.step, other.step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "request 1, step 1, layer 1 has 1 experts, not 2; rows are missing, or K differs"),
        (lambda rows: [*rows, rows[0]], "row 25: request 0, step 0, layer 0 has more than 2 experts; is a row repeated"),
        (lambda rows: ["0,0,-1,0,0,1,0.75,0,10", *rows[1:]], "row 1: step is -1; it counts from 0, so this row was not"),
        (lambda rows: [*rows[:4], "0,1", *rows[5:]], "row 5 has 2 values, but there are 9 columns"),
        (lambda rows: ["0,0,0,0,0,5,0.75,0,10", *rows[1:]], "row 1: expert is 5; it must be in 0..4"),
        (lambda rows: ["0,0,0,2,0,1,0.75,0,10", *rows[1:]], "row 1: layer is 2; it must be in 0..1"),
        (lambda rows: [rows[0], "0,0,0,0,1,one,0.25,0,10", *rows[2:]], "row 2: expert is 'one', which is not a whole number"),
        (lambda rows: [], "has no rows"),
    ],
)
def test_what_no_router_gives_is_refused(tmp_path, change, message):
    path = write(tmp_path / "x.csv", change(rows_of(TOKENS)))
    with pytest.raises(FinemoeError, match=message):
        load_route_trace(path)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(FinemoeError, match="no such trace"):
        load_route_trace(tmp_path / "none.csv")
    with pytest.raises(FinemoeError, match="the header does not state n_layer"):
        load_route_trace(write(tmp_path / "x.csv", rows_of(TOKENS), header=["# route_trace v1"]))
    broken = tmp_path / "y.csv.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(FinemoeError, match=r"y\.csv\.gz: the header does not state n_layer"):
        load_route_trace(broken)


def test_layers_without_rows_are_left_out_and_bytes_belong_to_those_that_have(tmp_path):
    """A dense layer has no rows, as the publisher's docs/telemetry.md says."""
    header = ["# route_trace v1", f"# model=x arch=y n_layer=4 n_expert={EXPERTS} n_expert_used={TOP_K}"]
    header += [f"# layer={layer} expert_bytes={size} dense_bytes=9" for layer, size in enumerate((0, 40, 0, 60))]
    rows = [re.sub(r"^(\d,\d,\d,)(\d)", lambda m: m[1] + str(1 + 2 * int(m[2])), row) for row in rows_of(TOKENS)]
    found = import_trace(write(tmp_path / "x.csv", rows, header), None, Options())
    assert found.format == "route-trace"
    assert (found.trace.num_layers, found.trace.expert_bytes) == (2, (40, 60))
    assert found.notes == ("layers without rows are left out (0, 2); the others keep their order",)
    np.testing.assert_array_equal(found.trace.expert_ids, load_route_trace(write(tmp_path / "y.csv", rows_of(TOKENS))).expert_ids)


def test_a_last_layer_that_routes_the_last_token_of_a_prompt(tmp_path):
    """As llama.cpp does: what the prompt demands of that layer is that token's experts."""
    rows = [row for row in rows_of(TOKENS) if not row.startswith("0,0,0,1")]
    found = import_trace(write(tmp_path / "x.csv", rows), None, Options())
    whole = load_route_trace(write(tmp_path / "y.csv", rows_of(TOKENS)))
    assert found.notes == ("layer 1 routes only the last token of a prompt: its experts stand in for 1 others there",)
    np.testing.assert_array_equal(found.trace.expert_ids[1:], whole.expert_ids[1:])
    np.testing.assert_array_equal(found.trace.expert_ids[0, 0], whole.expert_ids[0, 0])
    np.testing.assert_array_equal(found.trace.expert_ids[0, 1], whole.expert_ids[1, 1])
    with pytest.raises(FinemoeError, match="request 0, step 0, layer 0 has 0 experts, not 2"):
        load_route_trace(write(tmp_path / "z.csv", [row for row in rows_of(TOKENS) if not row.startswith("0,0,0,0")]))


def test_weights_that_the_recorder_did_not_see(tmp_path):
    rows = [re.sub(r",0\.\d+,0,10$", ",nan,0,10", row) for row in rows_of(TOKENS)]
    trace = load_route_trace(write(tmp_path / "x.csv", rows))
    assert (trace.has_weights, np.unique(trace.expert_probs).tolist()) == (False, [0.5])
    with pytest.raises(
        FinemoeError, match="row 1: a weight is nan; weights are shares of at least 0, given in every row or in none"
    ):
        load_route_trace(write(tmp_path / "y.csv", [rows[0], *rows_of(TOKENS)[1:]]))


@pytest.mark.skipif(not sample_path().is_file(), reason="the public sample is not here")
def test_the_public_sample():
    trace = load_route_trace(sample_path())
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (30, 128, 6)
    assert np.bincount(trace.phase).tolist() == [29, 128]
    assert trace.num_requests == 1
    assert set(trace.expert_bytes) == {4336640, 3593216}  # quantised higher in some layers
    touched = [len(np.unique(trace.expert_ids[trace.phase == DECODE][:, layer])) for layer in range(30)]
    assert 60 < np.mean(touched) < 75  # the publisher counts 67
