"""RoutingTrace: round trip, selection, iterations, maps, and the refusal of malformed input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe.errors import FinemoeError
from finemoe.traces import DECODE, PREFILL, RoutingTrace


def make_trace(
    seed: int = 0, lengths: tuple[int, ...] = (5, 3, 7), layers: int = 3, experts: int = 6, k: int = 2
) -> RoutingTrace:
    """Requests whose first two tokens are the prefill."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    probs = rng.dirichlet(np.ones(experts), size=(rows, layers)).astype(np.float16)
    ids = np.argsort(-probs, axis=-1, kind="stable")[..., :k]
    step = np.concatenate([np.maximum(np.arange(n) - 1, 0) for n in lengths])
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
        request_ids=tuple(f"r{i}" for i in range(len(lengths))),
        splits=tuple(("history", "served", "history", "history", "served")[: len(lengths)]),
        model="m",
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(2, 6), min_size=1, max_size=3))
def test_save_and_load_is_identity(tmp_path_factory, seed, lengths):
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    trace = make_trace(seed, tuple(lengths))
    trace.save(path)
    loaded = RoutingTrace.load(path)
    for name in (
        "expert_ids",
        "expert_probs",
        "offsets",
        "step",
        "phase",
        "probs",
        "tokens",
        "embedding_table",
        "embedding_index",
    ):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(trace, name))
        assert getattr(loaded, name).dtype == getattr(trace, name).dtype
    assert (loaded.request_ids, loaded.splits, loaded.model, loaded.num_experts) == (trace.request_ids, trace.splits, "m", 6)
    content = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == content


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
    trace = RoutingTrace.from_topk(ids, np.array([[[0.5, 0.25]], [[0.75, 0.25]]]), [0, 1, 2], num_experts=4)
    np.testing.assert_allclose(trace.maps()[:, 0], [[0, 1 / 3, 0, 2 / 3], [0.75, 0, 0.25, 0]], atol=1e-6)
    assert trace.phase.tolist() == [DECODE, DECODE]
    assert trace.step.tolist() == [0, 0]
    with pytest.raises(FinemoeError, match="no semantic embeddings"):
        trace.embeddings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_ids": [[[0, 9]], [[0, 1]]]}, r"outside 0..3; row 0"),
        ({"expert_probs": [[[0.5, 0.5]], [[0.5, np.nan]]]}, "negative or NaN in row 1"),
        ({"expert_probs": [[[0.5, 0.5]], [[-0.5, 1.5]]]}, "negative or NaN in row 1"),
        ({"expert_probs": [[[0.5]], [[0.5]]]}, r"must both be \[T, L, K\]"),
        ({"offsets": [0, 3]}, "offsets must rise from 0 to the number of rows, 2"),
        ({"offsets": [0, 2, 1, 2]}, "offsets must rise"),
    ],
)
def test_malformed_top_k_input_is_named(change, message):
    good = {"expert_ids": [[[0, 1]], [[2, 1]]], "expert_probs": [[[0.5, 0.5]], [[0.5, 0.5]]], "offsets": [0, 2]}
    arrays = {name: np.array(value) for name, value in {**good, **change}.items()}
    with pytest.raises(FinemoeError, match=message):
        RoutingTrace.from_topk(**arrays, num_experts=4)


def test_probabilities_that_do_not_sum_to_one_are_named():
    trace = make_trace()
    probs = trace.probs.copy()
    probs[4] *= 0.5
    with pytest.raises(FinemoeError, match="do not sum to 1 over the experts in row 4"):
        RoutingTrace(**{**trace.__dict__, "probs": probs})


def test_a_file_of_another_kind_is_refused(tmp_path):
    from finemoe.maps.store import ExpertMapStore

    ExpertMapStore(3, 4, 0).save(tmp_path / "a")
    with pytest.raises(FinemoeError, match=r"holds an? expert-map-store, expected routing-trace"):
        RoutingTrace.load(tmp_path / "a")
    with pytest.raises(FinemoeError, match="no such routing-trace file"):
        RoutingTrace.load(tmp_path / "b")
