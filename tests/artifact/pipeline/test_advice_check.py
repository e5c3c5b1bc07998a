from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.pipeline import advice_check
from finemoe.artifact.pipeline.advice_check import Workload, beyond_s, check_rows, errors_of, paced_testbed, told_bytes, waited_s
from finemoe.errors import FinemoeError
from finemoe.simulation.cost import CostModel, ModelSize
from finemoe.simulation.testbed import Testbed
from finemoe.simulation.timed import ModelledPace, prefetch_time_s
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE


def table(rows):
    return pd.DataFrame(rows, columns=["model", "system", "expert_memory", "round", "tpot_s"]).assign(request=0)


MEASURED = table(
    [
        ("m", "a", 0.5, 0, 2.0),
        ("m", "a", 0.5, 1, 4.0),
        ("m", "a", 0.5, 2, 3.0),
        ("m", "b", 0.5, 0, 2.2),
        ("m", "b", 0.5, 1, 4.2),
        ("m", "b", 0.5, 2, 3.6),
        ("m", "b", 1.0, 0, 1.0),
        ("m", "b", 1.0, 1, 1.0),
        ("m", "b", 1.0, 2, 1.0),
    ]
)


def test_what_is_advised_is_compared_with_the_best_that_has_room():
    advised = [
        {"model": "m", "room": 0.5, "system": "b", "expert_memory": 0.5},
        {"model": "m", "room": 1.0, "system": "a", "expert_memory": 0.5},
        {"model": "m", "room": 1.0, "system": "b", "expert_memory": 1.0},
    ]
    within, far, best = check_rows(MEASURED, advised)
    assert (within["best_system"], within["best_memory"]) == ("a", 0.5)
    assert within["ratio"] == pytest.approx(1.1)  # of 1.1, 1.05 and 1.2
    assert 1.05 <= within["low"] <= within["ratio"] <= within["high"] <= 1.2 + 1e-9
    assert (far["best_system"], far["best_memory"], far["ratio"]) == ("b", 1.0, 3.0)
    assert not far["is_within"]
    assert best["ratio"] == 1.0
    assert best["is_within"]


def test_what_was_not_measured_cannot_be_checked():
    with pytest.raises(FinemoeError, match=r"c at 0\.5 of m"):
        check_rows(MEASURED, [{"model": "m", "room": 0.5, "system": "c", "expert_memory": 0.5}])


def test_errors_are_those_of_the_same_request():
    one = table([("m", "a", 0.5, 0, 1.0), ("m", "a", 0.5, 1, 6.0)]).assign(request=[0, 1])
    other = table([("m", "a", 0.5, 0, 2.0), ("m", "a", 0.5, 1, 4.0)]).assign(request=[0, 1])
    assert errors_of(one, other).loc[("m", 0.5), "a"] == pytest.approx(0.0)  # of -0.5 and 0.5


def test_an_expert_takes_its_time_on_the_link_and_what_is_beyond_it(monkeypatch):
    load_s, wait_s, ahead_s = 0.002, 0.0003, 0.0005
    monkeypatch.setattr(advice_check, "beyond_s", lambda *_: (wait_s, ahead_s))
    testbed = paced_testbed(Testbed.load("rtx3090"), load_s)
    size = replace(ModelSize.known(32, 8, 2), packed_bytes=told_bytes(load_s))
    cost = CostModel(size, testbed)
    assert cost.load() == pytest.approx(load_s + wait_s + (ahead_s - wait_s) / 8)
    assert prefetch_time_s(cost) == pytest.approx(load_s + ahead_s)
    assert ModelledPace(cost, None).chunk_s == pytest.approx((load_s + ahead_s) / 8)


def test_what_a_paced_link_takes_beyond_its_time_is_measured():
    wait_s, ahead_s = beyond_s(0.001, 3)
    assert 0 <= wait_s < 1
    assert 0 <= ahead_s < 1


def test_of_a_request_only_what_is_generated_is_replayed():
    trace = RoutingTrace.load(FILE)
    workload = Workload("golden", trace, [], 3, 0.001)
    served = workload.served(0)
    assert served.num_requests == 1
    assert set(served.step) == {0, 1, 2}
    assert np.array_equal(served.expert_ids, trace.split("served").expert_ids[: served.num_rows])
    assert len(set(workload.first_held)) == trace.num_layers * trace.num_experts


def test_waiting_for_a_core_is_counted():
    assert waited_s() >= 0.0
