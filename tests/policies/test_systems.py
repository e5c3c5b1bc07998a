"""What the other systems know and learn, piece by piece; their decisions as a whole are in tests/simulation/test_golden.py."""

import re

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import FinemoeError
from finemoe.policies import LIVE_POLICIES, POLICIES, make_policy
from finemoe.policies.base import Context, PolicySetup, Prediction, checked
from finemoe.policies.moe_infinity import representatives, request_counts
from finemoe.policies.predictors import LayerPredictors
from finemoe.traces import RoutingTrace
from tests.runtime.models import build
from tests.simulation.golden import FILE

TRACE = RoutingTrace.load(FILE)
HISTORY, SERVED = TRACE.split("history"), TRACE.split("served")


def setup(history=None, distance: int = 2) -> PolicySetup:
    return PolicySetup(4, 6, 2, 3, prefetch_distance=distance, history=history, model="golden")


def start(num_rows: int = 1) -> Context:
    return Context(np.ones((num_rows, 3), dtype=np.float32), is_prefill=True, starts_request=True, num_rows=num_rows)


def run_request(policy, trace: RoutingTrace, request: int) -> None:
    """Every iteration of one request, in order."""
    first = True
    for owner, _, rows in trace.iterations():
        if owner != request:
            continue
        policy.start_iteration(Context(trace.embeddings(rows), first, first))
        for layer in range(trace.num_layers):
            policy.on_gate(layer, trace.maps(rows)[:, layer], trace.expert_ids[rows, layer].astype(np.int64))
        policy.end_iteration()
        first = False


def test_matrices_count_activations():
    counts = request_counts(HISTORY)
    assert counts.sum() == HISTORY.expert_ids.size
    rows = HISTORY.rows_of(1)
    expected = [[int((HISTORY.expert_ids[rows, layer] == expert).sum()) for expert in range(6)] for layer in range(4)]
    np.testing.assert_array_equal(counts[1], expected)


def test_a_collection_keeps_one_matrix_of_every_cluster():
    rng = np.random.default_rng(0)
    centres = rng.dirichlet(np.full(24, 0.2), size=3).reshape(3, 4, 6)
    matrices = np.concatenate([centre + 0.001 * rng.random((5, 4, 6)) for centre in centres])
    kept = representatives(matrices, 3, seed=0)
    units = matrices / np.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    members = [int(np.abs(units - one).sum(axis=(1, 2)).argmin()) for one in kept]
    assert all(np.abs(units[member] - one).max() < 1e-12 for member, one in zip(members, kept, strict=True))
    assert sorted(member // 5 for member in members) == [0, 1, 2]
    assert len(representatives(matrices, 99, seed=0)) == 15


def test_a_finished_request_enters_the_collection_and_replaces_its_likest():
    policy = make_policy("moe-infinity", setup(), collection_capacity=2)
    assert policy.start_iteration(start()) == []
    for request in range(3):
        run_request(policy, HISTORY, request)
        assert len(policy.collection) == min(request, 2)
    before = policy.collection.copy()
    policy.start_iteration(start())  # the third request is over now
    newest = request_counts(HISTORY)[2]
    newest /= np.linalg.norm(newest)
    likest = int((before * newest).sum(axis=(1, 2)).argmax())
    np.testing.assert_allclose(policy.collection[likest], newest)
    np.testing.assert_allclose(policy.collection[1 - likest], before[1 - likest])


def test_popular_experts_lead_the_first_layers():
    policy = make_policy("moe-infinity", setup(HISTORY))
    answers = policy.start_iteration(start(num_rows=2))
    popular = request_counts(HISTORY).sum(axis=0)
    assert [answer.layer for answer in answers] == [0, 1]
    for answer in answers:
        assert set(answer.experts) == set(np.argsort(-popular[answer.layer], kind="stable")[:4])


def test_predictors_find_a_linear_rule():
    """Layer 2 activates the neighbours of what layer 0 prefers most: a rule that one-hot gates make linear."""
    rng = np.random.default_rng(0)
    favourite = rng.integers(0, 6, 400)
    maps = np.full((400, 3, 6), 0.02, dtype=np.float32)
    maps[np.arange(400), 0, favourite] = 0.9
    experts = np.zeros((400, 3, 2), dtype=np.int64)
    experts[:, :, 1] = 1
    experts[:, 2] = np.stack([(favourite + 1) % 6, (favourite + 2) % 6], axis=1)
    predictors = LayerPredictors(3, 6, 2)
    for begin in range(0, 400, 100):
        predictors.learn(maps[begin : begin + 100], experts[begin : begin + 100])
    predictors.fit()
    found = predictors.predict(2, [maps[:50, layer] for layer in range(3)])
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    top = np.sort(np.argsort(-found, axis=1)[:, :2], axis=1)
    np.testing.assert_array_equal(top, np.sort(experts[:50, 2], axis=1))


def test_predictors_at_several_distances_learn_together_what_each_learns_alone():
    rng = np.random.default_rng(5)
    maps = rng.dirichlet(np.full(6, 0.4), size=(120, 5)).astype(np.float32)
    experts = np.argsort(-maps, axis=-1)[..., :2]
    nearest = LayerPredictors(5, 6, 1)
    together = [nearest, nearest.farther(2), nearest.farther(4)]
    alone = [LayerPredictors(5, 6, distance) for distance in (1, 2, 4)]
    for rows in (slice(0, 70), slice(70, 120)):
        nearest.learn(maps[rows], experts[rows])
        for one in alone:
            one.learn(maps[rows], experts[rows])
    for one, other, distance in zip(together, alone, (1, 2, 4), strict=True):
        assert one.num_rows == other.num_rows == 120
        one.fit()
        other.fit()
        for target in range(distance, 5):
            gates = [maps[:9, layer] for layer in range(5)]
            np.testing.assert_array_equal(one.predict(target, gates), other.predict(target, gates))


def test_promoe_learns_online_once_it_has_seen_enough():
    policy = make_policy("promoe", setup())
    for request in range(HISTORY.num_requests):
        run_request(policy, HISTORY, request)
    policy.start_iteration(start())
    assert policy.on_gate(0, HISTORY.maps(slice(0, 1))[:, 0], np.zeros((1, 2), dtype=np.int64))[0].layer == 2


@pytest.mark.parametrize("policy", ["moe-infinity", "promoe"])
def test_a_history_of_the_wrong_kind_is_named(policy):
    with pytest.raises(FinemoeError, match=r"learns from a RoutingTrace; history is of type dict"):
        make_policy(policy, setup({}))
    narrow = RoutingTrace.from_topk(np.zeros((1, 4, 1), dtype=int), np.ones((1, 4, 1)), [0, 1], 3)
    with pytest.raises(FinemoeError, match="the history holds routing of 4 x 3 experts, the model has 4 x 6"):
        make_policy(policy, setup(narrow))


def test_what_a_trace_lacks_is_named():
    bare = RoutingTrace.from_topk(SERVED.expert_ids, np.full(SERVED.expert_ids.shape, 0.5), SERVED.offsets, 6)
    with pytest.raises(FinemoeError, match="stride 1"):
        finemoe.replay(bare, "mixtral-offloading")
    with pytest.raises(FinemoeError, match="stride 3"):
        finemoe.replay(SERVED, "promoe", predictor="speculative", prefetch_distance=3)


def test_unknown_systems_and_options_are_named():
    known = "deepspeed-inference, finemoe, finemoe-plus, mixtral-offloading"
    with pytest.raises(FinemoeError, match=f"unknown policy 'magic'; known: {known}"):
        make_policy("magic", setup())
    with pytest.raises(FinemoeError, match="policy 'on-demand' has no option 'predictor'; its options are: none"):
        make_policy("on-demand", setup(), predictor="learned")
    with pytest.raises(FinemoeError, match="'learned' and 'speculative', not 'guessed'"):
        make_policy("promoe", setup(), predictor="guessed")
    with pytest.raises(FinemoeError, match=r"must be in 1\.\.4"):
        setup(distance=5)


def test_the_future_is_for_replay_only():
    assert set(POLICIES) - set(LIVE_POLICIES) == {"oracle"}
    with pytest.raises(FinemoeError, match="policy 'oracle' must know the future"):
        finemoe.offload(build("mixtral"), 0.5, "oracle")


def test_no_offload_holds_everything_whatever_the_memory():
    model = build("mixtral")
    with finemoe.offload(model, 0.1, "no-offload") as engine, torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
        report = engine.report()
    assert (report.misses, report.demand_bytes, report.prefetched_bytes, report.useful_bytes) == (0, 0, 0, 0)
    assert report.hits == report.accesses > 0


def test_systems_load_as_section_3_says():
    """Synchronous systems have no worker; `asynchronous` overrides that."""
    model = build("mixtral")
    synchronous = dict.fromkeys(("deepspeed-inference", "mixtral-offloading", "moe-infinity"), True)
    for name, is_synchronous in (synchronous | {"promoe": False, "finemoe": False}).items():
        with finemoe.offload(model, 0.5, name) as engine:
            has_worker = engine.memories.memories[0].worker.is_beside
        assert has_worker != is_synchronous, name
    with finemoe.offload(model, 0.5, "moe-infinity", asynchronous=True) as engine:
        assert engine.memories.memories[0].worker.is_beside


def test_no_offload_holds_everything_on_any_number_of_devices_and_after_an_interrupt():
    """Round-robin shares may differ by one expert: every device has room for its own."""

    def broken_off(*_):
        raise KeyboardInterrupt

    model = build("mixtral")
    with finemoe.offload(model, 0.1, "no-offload", devices=5) as engine, torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
        with engine.probe.computing_with(broken_off), pytest.raises(KeyboardInterrupt):  # inside a layer
            model(input_ids=torch.tensor([[3, 4]]))
        model(input_ids=torch.tensor([[6, 7]]))
        report = engine.report()
    assert (report.misses, report.demand_bytes) == (0, 0)
    assert finemoe.replay(SERVED, "no-offload", devices=5).hit_rate == 1.0


@pytest.mark.parametrize("policy", ["moe-infinity", "deepspeed-inference", "mixtral-offloading"])
def test_waiting_for_loads_ahead_is_stalling(policy, clock):
    """Where loads are in line, inference waits for every byte's time on the link, and nothing else is stalling."""
    model, tokens = build("mixtral"), torch.arange(3, 9)[None]
    with finemoe.offload(model, 0.3, policy, link="paced:4MB/s") as engine, torch.no_grad():
        model.generate(input_ids=tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        report = engine.report()
    assert report.demand_bytes > 0
    assert (report.prefetched_bytes > 0) == (policy != "moe-infinity")
    assert report.stall_s == pytest.approx((report.demand_bytes + report.prefetched_bytes) / 4e6, rel=1e-9)
    assert report.ttft_s + report.num_decode_steps * report.tpot_s == pytest.approx(report.stall_s, rel=1e-9)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([(4, [0.25] * 6, [1])], "predicted layer 4; the model's layers are 0..3"),
        ([(-1, [0.25] * 6, [1])], "predicted layer -1"),
        ([(1, [0.25] * 5, [1])], "needs 6 finite probabilities"),
        ([(1, [-3.0] * 6, [1])], "none below 0"),
        ([(1, [float("nan")] * 6, [1])], "finite"),
        ([(1, [0.25] * 6, [6])], "their ids are 0..5"),
        ([(1, [0.25] * 6, [0.5])], "their ids are 0..5"),
        ([(1, [0.25] * 6, [0]), (1, [0.25] * 6, [1])], "may predict each layer only once"),
    ],
)
def test_an_impossible_answer_is_refused(predictions, message):
    """Compiled code would take it for an address."""
    answer = [Prediction(layer, np.array(row), np.array(experts)) for layer, row, experts in predictions]
    with pytest.raises(FinemoeError, match=re.escape(message)):
        checked(answer, PolicySetup(num_layers=4, num_experts=6, top_k=2))


def test_an_answer_is_the_executors_own():
    row = np.full(6, 0.25)
    (prediction,) = checked([Prediction(1, row, [])], PolicySetup(num_layers=4, num_experts=6, top_k=2))
    row[:] = 0
    assert prediction.probabilities.tolist() == [0.25] * 6
    assert prediction.experts.dtype == np.int64
