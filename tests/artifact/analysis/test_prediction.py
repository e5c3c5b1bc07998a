"""F4's hit rates against loops, and against the numbers an independent computation found on real routing."""

from dataclasses import replace

import numpy as np
import pytest

import finemoe
from finemoe.artifact.analysis.prediction import METHODS, prediction_table, random_store, redundancy_store
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.traces import DECODE, RoutingTrace
from tests.simulation.golden import FILE
from tests.test_traces import make_trace

DISTANCES = [1, 2]
GOLDEN = RoutingTrace.load(FILE)
HISTORY, SERVED = GOLDEN.split("history"), GOLDEN.split("served")


def naive_hit_rate(store_maps, served, distance) -> float:
    """Eq. 5 row by row and layer by layer."""
    hits = accesses = 0
    for row in range(served.num_rows):
        if served.phase[row] != DECODE:
            continue
        map_ = served.maps(slice(row, row + 1))[0].astype(float)
        for target in range(distance, served.num_layers):
            prefix = map_[: target - distance + 1].reshape(-1)
            stored = store_maps[:, : target - distance + 1].reshape(len(store_maps), -1).astype(float)
            nearest = int(np.argmax(stored @ prefix / np.linalg.norm(stored, axis=1)))
            guess = set(np.argsort(-store_maps[nearest, target], kind="stable")[: served.top_k].tolist())
            hits += len(guess & set(served.expert_ids[row, target].tolist()))
            accesses += served.top_k
    return hits / accesses


@pytest.mark.parametrize("capacity", [5, 100])
def test_expert_maps_are_eq_5(capacity):
    history, served = make_trace(0, (9, 8, 10)), make_trace(1, (6, 7))
    table = prediction_table(history, served, DISTANCES, capacity).set_index(["method", "distance"])
    for method, store in [
        ("expert maps", redundancy_store(history, capacity)),
        ("expert maps, random store", random_store(history, capacity, 0)),
    ]:
        for distance in DISTANCES:
            found = table.loc[(method, distance), "hit_rate"]
            assert found == pytest.approx(naive_hit_rate(store.maps(), served, distance), abs=1e-9)


def test_coarse_methods_are_their_definitions():
    history, served = make_trace(0, (9, 8, 10)), make_trace(1, (6, 7))
    table = prediction_table(history, served, [1], 50).set_index("method").hit_rate
    past = np.zeros((3, 3, 6))
    for request in range(3):
        for row in range(history.rows_of(request).start, history.rows_of(request).stop):
            for layer in range(3):
                past[request, layer, history.expert_ids[row, layer]] += 1
    hits = dict.fromkeys(["popularity", "request history", "request neighbour"], 0)
    accesses = 0
    for request in range(2):
        so_far = np.zeros((3, 6))
        for row in range(served.rows_of(request).start, served.rows_of(request).stop):
            neighbour = past[np.argmax([(p * so_far).sum() / np.linalg.norm(p) for p in past])]
            if served.phase[row] == DECODE:
                for layer in (1, 2):
                    activated = set(served.expert_ids[row, layer].tolist())
                    choices = {"popularity": past.sum(axis=0), "request history": so_far, "request neighbour": neighbour}
                    for method, counts in choices.items():
                        guess = np.argsort(-counts[layer], kind="stable")[:2]
                        hits[method] += len(activated & set(guess.tolist()))
                    accesses += 2
            for layer in range(3):
                so_far[layer, served.expert_ids[row, layer]] += 1
    for method, count in hits.items():
        assert table[method] == pytest.approx(count / accesses), method


def test_a_repeated_request_is_predicted_perfectly():
    trace = make_trace(5, (12,))
    table = prediction_table(trace, trace, DISTANCES, 50)
    assert (table[table.method == "expert maps"].hit_rate == 1.0).all()


def test_routers_ahead_and_learned_predictors_are_the_policies_predictions():
    """At K experts a row, each row an iteration of its own, the hit rate is the recall that a replay of the policy reports."""
    decode = SERVED.select([0])
    decode = replace(decode, phase=np.full_like(decode.phase, DECODE), step=np.arange(decode.num_rows, dtype=np.int32))
    table = prediction_table(HISTORY, decode, [2], 20).set_index("method").hit_rate
    for method, predictor in [("routers ahead", "speculative"), ("learned predictor", "learned")]:
        report = finemoe.replay(decode, "promoe", 0.5, history=HISTORY, prefetch_distance=2, predictor=predictor)
        assert table[method] == pytest.approx(report.recall_at_k, abs=1e-9)


def test_every_method_has_every_distance_and_an_interval_around_it():
    """The routers applied ahead only at the strides that a trace holds."""
    bare = {"lookahead_strides": (), "lookahead_ids": None, "lookahead_probs": None}
    table = prediction_table(make_trace(0, (9, 8, 10)), replace(make_trace(1, (6, 7, 9)), **bare), DISTANCES, 20)
    covered = dict.fromkeys(set(METHODS) - {"routers ahead"}, DISTANCES)
    assert table.groupby("method").distance.apply(list).to_dict() == covered
    table = prediction_table(HISTORY, SERVED, [1, 2, 3], 20)
    assert table[table.method == "routers ahead"].distance.tolist() == [1, 2]
    assert ((table.low <= table.hit_rate) & (table.hit_rate <= table.high)).all()


@pytest.mark.skipif(not sample_path().is_file(), reason="the public gpt-oss-20b sample is not beside the checkout")
def test_recalls_on_real_routing_agree_with_an_independent_computation():
    """On the publisher's whole set: request history 0.42, nearest of 1 000 maps 0.61, three layers ahead (DESIGN 4)."""
    trace = load_gpt_oss(sample_path())
    served = trace.split("served").select(range(0, 110, 6))
    history = trace.split("history").select(range(0, 258, 4))
    table = prediction_table(history, served, [3], 1000).set_index("method").hit_rate
    assert table["expert maps, random store"] == pytest.approx(0.61, abs=0.03)
    assert table["request history"] == pytest.approx(0.42, abs=0.03)
