"""NumPy files: arrays by common names, one array a request, and what is refused."""

import gzip

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.importers import Options, array_files, import_trace, read_trace
from tests.importers.written import ARRAYS, assert_is, assert_same, make, write_npz


def test_names_of_arrays(tmp_path):
    one = make()
    requests = np.repeat([0, 1], one.lengths)
    phase = np.concatenate([np.repeat([0, 1], [3, 2]), np.repeat([0, 1], [1, 3])])
    order = np.random.default_rng(0).permutation(2).repeat([1, 1])
    rows = np.concatenate([np.flatnonzero(requests == request) for request in order])
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path,
        topk_ids=one.ids[rows].astype(np.int64),
        topk_weights=one.weights[rows],
        request_ids=requests[rows],
        phase=phase[rows],
    )
    assert_is(read_trace(path, num_experts=7), one)
    np.savez(path, ids=one.ids, probs=one.weights, cu_seqlens=one.offsets, prompt_lens=one.prompts, num_experts=7)
    found = import_trace(path, None, Options())
    assert_is(found.trace, one)
    assert (found.trace.num_experts, found.experts_from) == (7, "stated in the file")


def test_one_array_a_request(tmp_path):
    one = make()
    parts = [ids for _, ids, _, _ in one.requests()]
    np.savez(tmp_path / "a.npz", *[parts[0]] * 9, parts[0], parts[1])  # arr_10 comes behind arr_9
    trace = read_trace(tmp_path / "a.npz")
    assert np.diff(trace.offsets).tolist() == [5] * 10 + [4]
    np.save(tmp_path / "b.npy", parts[0].astype(np.int32))
    (tmp_path / "c.npy.gz").write_bytes(gzip.compress((tmp_path / "b.npy").read_bytes()))
    found = import_trace(tmp_path / "b.npy", None, Options(prompt_tokens=3))
    assert (found.format, found.trace.phase.tolist(), found.trace.has_weights) == ("npz", [0, 0, 0, 1, 1], False)
    np.testing.assert_array_equal(found.trace.expert_ids, np.sort(parts[0], axis=-1))
    assert_same(found.trace, read_trace(tmp_path / "c.npy.gz", prompt_tokens=3))


def test_vllms_arrays_of_version_0_21(tmp_path):
    """`RequestOutput.prompt_routed_experts` and `CompletionOutput.routed_experts`, both int16."""
    one = make()
    ids = one.ids.astype(np.int16)
    np.savez(tmp_path / "a.npz", prompt_routed_experts=ids[:3], routed_experts=ids[3:5])
    trace = read_trace(tmp_path / "a.npz")
    assert (trace.phase.tolist(), trace.step.tolist()) == ([0, 0, 0, 1, 1], [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(trace.expert_ids, np.sort(ids[:5], axis=-1))


def test_wide_types_are_read_in_blocks(tmp_path, monkeypatch):
    one = make()
    path = write_npz(tmp_path / "a.npz", one, expert_ids=one.ids.astype(np.int64), weights=one.weights.astype(np.float64))
    whole = read_trace(path)
    monkeypatch.setattr(array_files, "blocks", lambda rows, values: (slice(at, min(at + 2, rows)) for at in range(0, rows, 2)))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read_trace(path), name), getattr(whole, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.ones((9, 3, 3))}, r"weights \[9, 3, 3\] and expert_ids \[9, 3, 2\] differ in shape"),
        ({"expert_ids": np.ones((9, 6)), "weights": None}, r"'expert_ids' is of shape \[9, 6\] and type float64"),
        ({"offsets": [0, 6, 3, 9], "prompt_tokens": None}, r"offsets must rise, but request 1"),
        ({"offsets": [0, 8], "prompt_tokens": None}, r"offsets must rise from 0 to the number of rows, 9"),
        ({"prompt_tokens": [1, 2, 3]}, r"'prompt_tokens' has 3 values for 2 requests"),
        (
            {"expert_ids": np.full((9, 3, 2), -1)},
            r"token 0: expert -1; ids go from 0 to J - 1, so this token was not recorded",
        ),
        ({"weights": np.full((9, 3, 2), np.nan)}, r"token 0, layer 0: a weight is nan"),
        ({"weights": np.full((9, 3, 2), -1.0)}, r"token 0, layer 0: a weight is -1.0; .* turn logits into probabilities"),
        ({"routed_experts": np.zeros((9, 3, 2), int)}, r"arrays 'expert_ids' and 'routed_experts' hold the same"),
        ({"expert_ids": np.array([[None]]), "weights": None}, r"array 'expert_ids' holds Python objects, which are not loaded"),
        ({"expert_ids": None, "weights": None}, r"no array has a name such as expert_ids, and 'offsets' is not"),
        ({"phase": np.zeros(4)}, r"array 'phase' is of shape \[4\]; expected one value for each of 9 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    path = write_npz(tmp_path / "a.npz", make(), **changes)
    with pytest.raises(FinemoeError, match=rf"a.npz: .*{message}"):
        read_trace(path)


def test_damaged_files(tmp_path):
    path = write_npz(tmp_path / "a.npz", make())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FinemoeError, match=r"a.npz: damaged, or of another format"):
        read_trace(path)
    np.save(tmp_path / "b.npy", make().ids)
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-8])
    with pytest.raises(FinemoeError, match=r"b.npy: array '' ends before row 9; the file is truncated"):
        read_trace(tmp_path / "b.npy")


def test_archives_that_zipfile_cannot_read_are_one_line(tmp_path):
    """Marked as encrypted, or as compressed by an unknown method, in both headers of every member."""
    path = write_npz(tmp_path / "a.npz", make())
    whole = path.read_bytes()
    for local, central, value in ((6, 8, 1), (8, 10, 99)):
        content = bytearray(whole)
        for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
            start = whole.find(signature)
            while start >= 0:
                content[start + offset] = value
                start = whole.find(signature, start + 4)
        path.write_bytes(content)
        with pytest.raises(FinemoeError, match=r"a.npz: damaged, or of another format \(.*(encrypted|compression)"):
            read_trace(path)
