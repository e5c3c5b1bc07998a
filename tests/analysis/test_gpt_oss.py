"""The importer of the public gpt-oss-20b routing, on a file of the publisher's shape."""

import numpy as np
import pytest

from finemoe.analysis.gpt_oss import NUM_EXPERTS, load_gpt_oss
from finemoe.errors import FinemoeError


def write(path, num_requests=10, tokens=4, **changes):
    rng = np.random.default_rng(0)
    rows = num_requests * tokens
    ids = np.stack([rng.permutation(NUM_EXPERTS)[:4] for _ in range(rows * 3)]).reshape(rows, 3, 4).astype(np.uint8)
    probs = rng.dirichlet(np.ones(4), size=(rows, 3)).astype(np.float16)
    arrays = {"expert_ids": ids, "expert_probs": probs, "offsets": np.arange(num_requests + 1) * tokens} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return ids, probs


def test_experts_come_by_descending_probability_and_requests_split_7_to_3(tmp_path):
    ids, probs = write(tmp_path / "trace.npz")
    trace = load_gpt_oss(tmp_path / "trace.npz")
    assert (np.diff(trace.expert_probs, axis=-1) <= 0).all()
    for row, layer in [(0, 0), (17, 2)]:
        assert dict(zip(trace.expert_ids[row, layer], trace.expert_probs[row, layer], strict=True)) == dict(
            zip(ids[row, layer], probs[row, layer], strict=True)
        )
    assert trace.splits.count("history") == 7
    assert trace.splits == load_gpt_oss(tmp_path / "trace.npz").splits


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(FinemoeError, match="no such trace"):
        load_gpt_oss(tmp_path / "none.npz")
    write(tmp_path / "part.npz", expert_probs=None)
    with pytest.raises(FinemoeError, match="lacks the array"):
        load_gpt_oss(tmp_path / "part.npz")


def test_the_development_sample(shared_data):
    path = shared_data / "routing" / "gpt-oss-20b" / "decode_traces.npz"
    if not path.is_file():
        pytest.skip("the gpt-oss-20b routing is not among the external data")
    trace = load_gpt_oss(path)
    assert (trace.num_requests, trace.num_rows, trace.num_layers, trace.top_k) == (369, 107442, 24, 4)
