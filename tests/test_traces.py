"""RoutingTrace: round trip in memory and mapped, selection, iterations, maps, lookahead, and the refusal of malformed input."""

import dataclasses
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.errors import FinemoeError
from finemoe.traces import DECODE, PREFILL, RoutingTrace

STRIDES = (1, 3)


def make_trace(
    seed: int = 0, lengths: tuple[int, ...] = (5, 3, 7), layers: int = 3, experts: int = 6, k: int = 2
) -> RoutingTrace:
    """Requests whose first two tokens are the prefill."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    probs = rng.dirichlet(np.ones(experts), size=(rows, layers)).astype(np.float16)
    ids = np.argsort(-probs, axis=-1, kind="stable")[..., :k]
    step = np.concatenate([np.maximum(np.arange(n) - 1, 0) for n in lengths])
    ahead = rng.dirichlet(np.ones(experts), size=(rows, len(STRIDES), layers)).astype(np.float16)
    for index, stride in enumerate(STRIDES):
        ahead[:, index, max(0, layers - stride) :] = 0
    ahead_ids = np.argsort(-ahead, axis=-1, kind="stable")[..., : k + 1]
    ahead_probs = np.take_along_axis(ahead, ahead_ids, axis=-1)
    return RoutingTrace(
        expert_ids=ids.astype(np.uint8),
        expert_probs=np.take_along_axis(probs, ids, axis=-1),
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        num_experts=experts,
        step=step.astype(np.int32),
        phase=np.where(step == 0, PREFILL, DECODE).astype(np.uint8),
        probs=probs,
        tokens=rng.integers(0, 9, rows).astype(np.int32),
        embedding_table=rng.normal(size=(4, 5)).astype(np.float16),
        embedding_index=rng.integers(0, 4, rows).astype(np.int32),
        lookahead_strides=STRIDES,
        lookahead_ids=np.where(ahead_probs > 0, ahead_ids, 0).astype(np.uint8),
        lookahead_probs=ahead_probs,
        request_ids=tuple(f"r{i}" for i in range(len(lengths))),
        splits=tuple(("history", "served", "history", "history", "served")[: len(lengths)]),
        model="m",
    )


def assert_same(found: RoutingTrace, expected: RoutingTrace) -> None:
    for field in dataclasses.fields(RoutingTrace):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(value, wanted)
            assert value.dtype == wanted.dtype
        else:
            assert value == wanted


def altered(trace: RoutingTrace, name: str, index: object, value: object) -> RoutingTrace:
    """The trace with one entry of one array replaced."""
    array = getattr(trace, name).copy()
    array[index] = value
    return dataclasses.replace(trace, **{name: array})


@settings(max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(2, 6), min_size=1, max_size=3), st.integers(1, 5))
def test_save_and_load_is_identity(tmp_path_factory, seed, lengths, layers):
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    trace = make_trace(seed, tuple(lengths), layers)
    trace.save(path)
    content = path.read_bytes()
    for mapped in (False, True):
        loaded = RoutingTrace.load(path, mapped)
        assert_same(loaded, trace)
        loaded.save(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize("mapped", [False, True])
def test_a_trace_without_requests_is_saved_and_loaded(tmp_path, mapped):
    make_trace().select([]).save(tmp_path / "a.trace")
    assert RoutingTrace.load(tmp_path / "a.trace", mapped).num_requests == 0


def test_a_mapped_trace_answers_as_one_in_memory(tmp_path):
    trace = make_trace(seed=3)
    trace.save(tmp_path / "a.trace")
    mapped = RoutingTrace.load(tmp_path / "a.trace", mapped=True)
    arrays = [value for field in dataclasses.fields(mapped) if isinstance(value := getattr(mapped, field.name), np.ndarray)]
    assert len(arrays) == 11
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in arrays)
    for rows in (slice(2, 9), np.array([14, 0, 7])):
        np.testing.assert_array_equal(mapped.maps(rows), trace.maps(rows))
        np.testing.assert_array_equal(mapped.embeddings(rows), trace.embeddings(rows))
        np.testing.assert_array_equal(mapped.lookahead(rows, 1), trace.lookahead(rows, 1))
        mapped.release_pages()
    assert list(mapped.iterations()) == list(trace.iterations())
    assert_same(mapped.select([2, 0]), trace.select([2, 0]))
    assert_same(mapped.split("history"), trace.split("history"))


def resident_bytes(path: Path) -> int:
    """What of a mapped file this process holds in memory."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return sum(int(re.search(r"^Rss: +(\d+) kB", text, re.MULTILINE)[1]) * 1024 for text in mappings if str(path) in text)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not tell what is resident")
def test_pages_of_a_mapped_trace_come_and_go(tmp_path):
    path = tmp_path / "a.trace"
    trace = make_trace(lengths=(400, 300), layers=8, experts=16)
    trace.save(path)
    mapped = RoutingTrace.load(path, mapped=True)
    assert resident_bytes(path) == 0
    np.testing.assert_array_equal(mapped.maps(), trace.maps())
    assert resident_bytes(path) >= trace.probs.nbytes
    mapped.release_pages()
    assert resident_bytes(path) == 0
    np.testing.assert_array_equal(mapped.maps(), trace.maps())
    trace.release_pages()


def test_loading_mapped_needs_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("finemoe.trace_checks._BLOCK_VALUES", 1 << 12)
    monkeypatch.setattr("finemoe.files._PIECE_BYTES", 1 << 12)
    make_trace(lengths=(1500, 1500), layers=12, experts=32).save(tmp_path / "a.trace")
    RoutingTrace.load(tmp_path / "a.trace", mapped=True)  # whatever is imported on first use
    tracemalloc.start()
    try:
        RoutingTrace.load(tmp_path / "a.trace", mapped=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "a.trace").stat().st_size / 8


@pytest.mark.parametrize("mapped", [False, True])
@settings(max_examples=60)
@given(st.data())
def test_a_damaged_byte_never_goes_unnoticed(tmp_path_factory, mapped, data):
    """Every byte of the file counts, but for the blanks that fill up the library's header."""
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    trace = make_trace(lengths=(3, 2))
    trace.save(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content)
    try:
        found = RoutingTrace.load(path, mapped)
    except FinemoeError:
        return
    assert_same(found, trace)


@pytest.mark.parametrize("mapped", [False, True])
@settings(max_examples=30)
@given(st.data())
def test_a_truncated_file_is_refused(tmp_path_factory, mapped, data):
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    make_trace(lengths=(3, 2)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(FinemoeError, match="truncated"):
        RoutingTrace.load(path, mapped)


@pytest.mark.parametrize("mapped", [False, True])
def test_damaged_values_are_named_by_array(tmp_path, mapped):
    path = tmp_path / "a.trace"
    trace = make_trace()
    trace.save(path)
    content = path.read_bytes()
    place = content.index(trace.lookahead_probs.tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(FinemoeError, match="array 'lookahead_probs' does not match its checksum"):
        RoutingTrace.load(path, mapped)


def test_select_keeps_whole_requests_in_the_order_given():
    trace = make_trace()
    chosen = trace.select([2, 0])
    np.testing.assert_array_equal(chosen.tokens, np.concatenate([trace.tokens[8:15], trace.tokens[:5]]))
    assert chosen.offsets.tolist() == [0, 7, 12]
    assert chosen.request_ids == ("r2", "r0")
    np.testing.assert_array_equal(chosen.embeddings(slice(0, 7)), trace.embeddings(slice(8, 15)))


def test_splits_never_share_a_request():
    trace = make_trace()
    history, served = trace.split("history"), trace.split("served")
    assert set(history.request_ids) | set(served.request_ids) == set(trace.request_ids)
    assert not set(history.request_ids) & set(served.request_ids)
    with pytest.raises(FinemoeError, match="no request of this trace is in split 'test'"):
        trace.split("test")


def test_iterations_are_the_rows_of_one_step():
    listed = [(request, step, rows.start, rows.stop) for request, step, rows in make_trace(lengths=(4, 3)).iterations()]
    assert listed == [(0, 0, 0, 2), (0, 1, 2, 3), (0, 2, 3, 4), (1, 0, 4, 6), (1, 1, 6, 7)]


def test_top_k_maps_hold_the_known_entries_renormalised():
    ids = np.array([[[3, 1]], [[0, 2]]])
    trace = RoutingTrace.from_topk(ids, np.array([[[0.6, 0.375]], [[0.75, 0.25]]]), [0, 1, 2], num_experts=4)
    np.testing.assert_allclose(trace.maps()[:, 0], [[0, 5 / 13, 0, 8 / 13], [0.75, 0, 0.25, 0]], atol=1e-3)
    assert trace.phase.tolist() == [DECODE, DECODE]
    assert trace.step.tolist() == [0, 0]
    with pytest.raises(FinemoeError, match="no semantic embeddings"):
        trace.embeddings()


def test_lookahead_puts_the_recorded_experts_back_in_place():
    trace = make_trace(seed=1, layers=4)
    for rows in (slice(3, 8), np.array([9, 2])):
        for index, stride in enumerate(STRIDES):
            found = trace.lookahead(rows, stride)
            expected = np.zeros_like(found)
            for position, row in enumerate(np.arange(trace.num_rows)[rows]):
                for layer in range(4 - stride):
                    for expert, prob in zip(
                        trace.lookahead_ids[row, index, layer], trace.lookahead_probs[row, index, layer], strict=True
                    ):
                        expected[position, layer, expert] = prob
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == np.float32
            assert not found[:, 4 - stride :].any()


def test_a_stride_that_was_not_recorded_is_refused():
    with pytest.raises(FinemoeError, match=r"stride 2 \(recorded strides: 1, 3\)"):
        make_trace().lookahead(slice(None), 2)
    trace = dataclasses.replace(make_trace(), lookahead_strides=(), lookahead_ids=None, lookahead_probs=None)
    with pytest.raises(FinemoeError, match=r"stride 1 \(recorded strides: none\)"):
        trace.lookahead(slice(None), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_ids": [[[0, 1]], [[2, 4]]]}, r"expert_ids hold 4, outside 0..3, in row 1, layer 0"),
        ({"expert_ids": [[[0, -1]], [[2, 1]]]}, r"expert_ids hold -1, outside 0..3, in row 0, layer 0"),
        ({"expert_ids": [[[0, 260]], [[2, 1]]]}, r"expert_ids hold 260, outside 0..3, in row 0, layer 0"),
        ({"expert_ids": [[[0, 1]], [[2, 2]]]}, "expert_ids name expert 2 twice in row 1, layer 0"),
        ({"expert_ids": [[[0, 1]], [[2, 1.5]]]}, "expert_ids must be integers"),
        ({"expert_ids": [[0, 1], [2, 1]]}, r"expert_ids must be \[T, L, K\]"),
        ({"expert_probs": [[[0.5, 0.5]], [[0.5, np.nan]]]}, r"negative, NaN or infinite \(nan\) in row 1, layer 0"),
        ({"expert_probs": [[[0.5, 0.5]], [[-0.5, 1.5]]]}, r"negative, NaN or infinite \(-0.5\) in row 1, layer 0"),
        ({"expert_probs": [[[0.5, 0.5]], [[np.inf, 0.5]]]}, r"negative, NaN or infinite \(inf\) in row 1, layer 0"),
        ({"expert_probs": [[[0.5, 0.5]], [[0.5, 0.25]]]}, "sum to 0.750 over the K experts, not 1, in row 1, layer 0"),
        ({"expert_probs": [[[0.5]], [[0.5]]]}, r"expert_probs must be of shape \(2, 1, 2\)"),
        ({"offsets": [0, 3]}, "offsets must rise from 0 to the number of rows, 2, but go from 0 to 3"),
        ({"offsets": [1, 2]}, "offsets must rise from 0 to the number of rows, 2, but go from 1 to 2"),
        ({"offsets": [0, 2, 1, 2]}, "offsets must rise, but request 1 begins at row 2 and ends at row 1"),
        ({"offsets": []}, r"offsets must be \[R \+ 1\]"),
        ({"step": [1, 0]}, "step falls to 0 within its request in row 1"),
        ({"step": [-1, 0]}, "step is -1 in row 0"),
        ({"step": [0]}, r"step must be of shape \(2,\)"),
        ({"phase": [1, 257]}, r"phase is 257, neither 0 \(prefill\) nor 1 \(decode\) in row 1"),
        ({"phase": [-1, 1]}, "phase is -1"),
        ({"phase": [0, 1], "step": [0, 0]}, "step 0 is of two phases in row 1"),
        ({"phase": [1, 0], "step": [0, 1]}, "step 1 is a prefill after a decode step of its request in row 1"),
    ],
)
def test_malformed_top_k_input_is_named(change, message):
    good = {"expert_ids": [[[0, 1]], [[2, 1]]], "expert_probs": [[[0.5, 0.5]], [[0.5, 0.5]]], "offsets": [0, 2]}
    arrays = {name: np.array(value) for name, value in {**good, **change}.items()}
    with pytest.raises(FinemoeError, match=message):
        RoutingTrace.from_topk(**arrays, num_experts=4)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("probs", (4, 1), 0.05, "probs do not sum to 1 over the experts but to 0.300 in row 4, layer 1"),
        ("probs", (4, 1, 2), np.nan, "probs are negative, NaN or infinite (nan) in row 4, layer 1"),
        ("tokens", 6, -2, "tokens hold -2 in row 6"),
        ("step", 9, 5, "step falls to 1 within its request in row 10"),
        ("phase", 3, 2, "phase is 2, neither 0 (prefill) nor 1 (decode) in row 3"),
        ("embedding_index", 11, 4, "embedding_index is 4, outside the table's 0..3, in row 11"),
        ("embedding_index", 11, -1, "embedding_index is -1, outside the table's 0..3, in row 11"),
        ("embedding_table", (2, 1), np.nan, "embedding_table holds nan in entry 2"),
        ("lookahead_ids", (5, 0, 1, 0), 6, "lookahead_ids at stride 1 hold 6, outside 0..5, in row 5, layer 1"),
        ("lookahead_ids", (5, 0, 1), 3, "lookahead_ids at stride 1 name expert 3 twice in row 5, layer 1"),
        ("lookahead_ids", (5, 1, 2, 0), 3, "stride 3 is not zero where it looks past the last layer, in row 5, layer 2"),
        ("lookahead_probs", (5, 0, 1, 2), -1, "at stride 1 are negative, NaN or infinite (-1.0) in row 5, layer 1"),
        ("lookahead_probs", (5, 0, 1, 2), 1, "lookahead_probs at stride 1 do not descend but rise to 1.0 in row 5, layer 1"),
        ("lookahead_probs", (5, 0, 1), 0.5, "lookahead_probs at stride 1 sum to 1.500, more than 1, in row 5, layer 1"),
    ],
)  # fmt: skip
def test_malformed_values_are_named(name, index, value, message):
    with pytest.raises(FinemoeError, match=re.escape(message)):
        altered(make_trace(), name, index, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.zeros(3, np.int32)}, "tokens must be of shape"),
        ({"tokens": np.zeros(15)}, "tokens must be integers, not float64"),
        ({"embedding_index": None}, "embedding_table and embedding_index must come together"),
        ({"embedding_table": np.zeros(4)}, "embedding_table must be"),
        ({"lookahead_strides": (3, 1)}, "must ascend from 1 or more"),
        ({"lookahead_strides": (0, 1)}, "must ascend from 1 or more"),
        ({"lookahead_strides": (1,)}, "lookahead_ids must be of shape"),
        ({"lookahead_strides": ()}, "must come together or not at all"),
        ({"lookahead_probs": None}, "must come together or not at all"),
        ({"request_ids": ("a",)}, "request_ids has 1 entries for 3 requests"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(change, message):
    with pytest.raises(FinemoeError, match=message):
        dataclasses.replace(make_trace(), **change)


@given(st.integers(0, 14), st.integers(0, 2), st.integers(1, 200))
def test_the_row_at_fault_is_named_whatever_the_blocks(row, layer, block_values):
    trace = make_trace()
    twice = trace.expert_ids[row, layer, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finemoe.trace_checks._BLOCK_VALUES", block_values)
        with pytest.raises(FinemoeError, match=f"name expert {twice} twice in row {row}, layer {layer}$"):
            altered(trace, "expert_ids", (row, layer), twice)
        with pytest.raises(FinemoeError, match=f"sum to 1 over the experts but to 0.000 in row {row}, layer {layer}$"):
            altered(trace, "probs", (row, layer), 0)


def test_rounded_probabilities_are_accepted():
    """Eight shares with the eight bits of mantissa that bfloat16 keeps."""
    probs = np.random.default_rng(0).dirichlet(np.ones(8), size=(50, 2))
    mantissa, exponent = np.frexp(probs)
    rounded = np.ldexp(np.round(mantissa * 256) / 256, exponent)
    ids = np.broadcast_to(np.arange(8), probs.shape)
    trace = RoutingTrace.from_topk(ids, rounded, [0, 50], num_experts=8)
    np.testing.assert_allclose(trace.maps().sum(axis=-1), 1, atol=1e-6)


def test_a_file_of_another_kind_is_refused(tmp_path):
    from finemoe.maps.store import ExpertMapStore

    ExpertMapStore(3, 4, 0).save(tmp_path / "a")
    with pytest.raises(FinemoeError, match=r"is of kind expert-map-store, expected routing-trace"):
        RoutingTrace.load(tmp_path / "a")
    with pytest.raises(FinemoeError, match="no such routing-trace file"):
        RoutingTrace.load(tmp_path / "b")


def test_decode_leaves_the_prefills_out():
    trace = make_trace(2, (6, 4, 5))
    found = trace.decode()
    kept = [row for row in range(trace.num_rows) if trace.phase[row] == DECODE]
    np.testing.assert_array_equal(found.tokens, trace.tokens[kept])
    np.testing.assert_array_equal(found.embeddings(), trace.embeddings(np.array(kept)))
    for request in range(trace.num_requests):
        rows = range(*trace.rows_of(request).indices(trace.num_rows))
        assert len(range(*found.rows_of(request).indices(found.num_rows))) == sum(trace.phase[row] == DECODE for row in rows)
    assert found.request_ids == trace.request_ids
