import gzip
from pathlib import Path

import numpy as np
import pytest

from finemoe.errors import FinemoeError
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
        *((0, 0, 2), (0, 3, 1), (0, 4, 1)),
        *((1, 0, 1), (1, 2, 1)),
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
        (lambda rows: rows[:-1], "step 1 of turn 1 has 3 rows, not 2 layers x 2 experts"),
        (lambda rows: [*rows, rows[0]], "row 25: this token, layer and slot was there before"),
        (lambda rows: ["0,0,0,0,0,5,0.75,0,10", *rows[1:]], "row 1: expert is 5; they go from 0 to 4"),
        (lambda rows: ["0,0,0,2,0,1,0.75,0,10", *rows[1:]], "row 1: layer is 2; they go from 0 to 1"),
        (lambda rows: [rows[0], "0,0,0,0,1,one,0.25,0,10", *rows[2:]], "row 2: expert is one"),
        (lambda rows: [], "it holds no row"),
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
    with pytest.raises(FinemoeError, match="not a route trace"):
        load_route_trace(broken)


@pytest.mark.skipif(not sample_path().is_file(), reason="the public sample is not here")
def test_the_public_sample():
    trace = load_route_trace(sample_path())
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (30, 128, 6)
    assert np.bincount(trace.phase).tolist() == [29, 128]
    assert trace.num_requests == 1
    touched = [len(np.unique(trace.expert_ids[trace.phase == DECODE][:, layer])) for layer in range(30)]
    assert 60 < np.mean(touched) < 75  # the publisher counts 67
