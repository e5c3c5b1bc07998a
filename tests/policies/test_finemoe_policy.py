"""FineMoE's decisions on small recorded maps, against the equations applied by hand."""

import numpy as np
import pytest

from finemoe.errors import FinemoeError
from finemoe.maps.store import ExpertMapStore
from finemoe.policies import make_policy
from finemoe.policies.base import Context, PolicySetup
from tests.test_traces import make_trace

L, J, K, D = 3, 6, 2, 1


def setup(history=None, capacity: int = 50) -> PolicySetup:
    return PolicySetup(L, J, K, 5, prefetch_distance=D, store_capacity=capacity, history=history, model="m")


def cosine_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None, :]


def expected_union(guides: np.ndarray, scores: np.ndarray) -> set[int]:
    """Eqs. 6-8 for each row, then the union over rows."""
    union: set[int] = set()
    for probs, score in zip(guides, scores, strict=True):
        threshold, total, chosen = min(max(1 - score, 0), 1), 0.0, []
        for expert in np.argsort(-probs, kind="stable"):
            if len(chosen) >= K and total >= threshold:
                break
            chosen.append(int(expert))
            total += probs[expert]
        union |= set(chosen)
    return union


def test_both_searches_guide_the_layers_the_paper_says():
    history, served = make_trace(0, (9, 8, 10)), make_trace(1, (6,))
    policy = make_policy("finemoe", setup(history))
    stored_maps, stored_embeddings = policy.store.maps(), policy.store.embeddings()
    rows = slice(0, 4)
    maps, embeddings = served.maps(rows), served.embeddings(rows)

    first = policy.start_iteration(Context(embeddings, is_prefill=True, starts_request=True))
    cosines = cosine_table(embeddings, stored_embeddings)
    nearest = cosines.argmax(axis=1)
    assert [prefetch.layer for prefetch in first] == list(range(D))
    guides = stored_maps[nearest, 0]
    assert set(first[0].experts.tolist()) == expected_union(guides, cosines.max(axis=1))
    np.testing.assert_allclose(first[0].probabilities, guides.max(axis=0), atol=1e-6)

    for layer in range(L):
        answer = policy.on_gate(layer, np.ascontiguousarray(maps[:, layer]), served.expert_ids[rows, layer])
        if layer + D >= L:
            assert answer == []
            continue
        cosines = cosine_table(maps[:, : layer + 1], stored_maps[:, : layer + 1])
        guides = stored_maps[cosines.argmax(axis=1), layer + D]
        assert answer[0].layer == layer + D
        assert set(answer[0].experts.tolist()) == expected_union(guides, cosines.max(axis=1))
        np.testing.assert_allclose(answer[0].probabilities, guides.max(axis=0), atol=1e-6)
    policy.end_iteration()
    assert len(policy.store) == history.num_rows, "a store filled from a history stays frozen"


def run_iteration(policy, maps: np.ndarray, embeddings: np.ndarray | None) -> list:
    answers = policy.start_iteration(Context(embeddings, is_prefill=False, starts_request=False))
    for layer in range(L):
        answers += policy.on_gate(layer, np.ascontiguousarray(maps[:, layer]), np.zeros((len(maps), K), dtype=int))
    policy.end_iteration()
    return answers


def test_without_history_it_learns_every_finished_iteration():
    trace = make_trace(2, (8,))
    policy = make_policy("finemoe", setup(capacity=5))
    assert run_iteration(policy, trace.maps(slice(0, 3)), trace.embeddings(slice(0, 3))) == []
    assert len(policy.store) == 3
    np.testing.assert_allclose(policy.store.maps(), trace.maps(slice(0, 3)), atol=1e-5)
    answers = run_iteration(policy, trace.maps(slice(1, 2)), trace.embeddings(slice(1, 2)))
    assert [answer.layer for answer in answers] == [0, 1, 2]
    assert all(len(answer.experts) == K for answer in answers), "a perfect match prefetches K experts"
    run_iteration(policy, trace.maps(slice(3, 8)), trace.embeddings(slice(3, 8)))
    assert len(policy.store) == 5


def test_an_iteration_that_broke_off_is_not_learned():
    trace = make_trace(2, (8,))
    policy = make_policy("finemoe", setup())
    policy.start_iteration(Context(trace.embeddings(slice(0, 1)), is_prefill=False, starts_request=False))
    policy.on_gate(0, trace.maps(slice(0, 1))[:, 0], np.zeros((1, K), dtype=int))
    run_iteration(policy, trace.maps(slice(1, 2)), trace.embeddings(slice(1, 2)))
    assert len(policy.store) == 1


def test_an_iteration_without_embeddings_is_guided_by_trajectories_alone():
    trace = make_trace(2, (8,))
    policy = make_policy("finemoe", setup(trace))
    assert [answer.layer for answer in run_iteration(policy, trace.maps(slice(1, 2)), None)] == [1, 2]


def test_a_ready_made_store_is_used_as_it_is():
    store = ExpertMapStore(L, J, 5, capacity=7, prefetch_distance=D)
    assert make_policy("finemoe", setup(store)).store is store


def test_histories_of_other_models_are_refused():
    with pytest.raises(FinemoeError, match="holds maps of 2 x 6 experts, the model has 3 x 6"):
        make_policy("finemoe", setup(ExpertMapStore(2, J, 5, prefetch_distance=D)))
    with pytest.raises(FinemoeError, match="history must be a RoutingTrace or an ExpertMapStore, not list"):
        make_policy("finemoe", setup([1]))
