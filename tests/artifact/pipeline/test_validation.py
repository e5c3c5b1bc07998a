"""The prediction of live runs and the breakdown of an iteration: what must hold whatever the machine's speed."""

import math
from pathlib import Path

import numpy as np
import pytest

from finemoe.artifact.pipeline.live_breakdown import measured_breakdown
from finemoe.artifact.pipeline.measured_pace import LinkTimes, Machine, MeasuredPace, SystemTimes
from finemoe.artifact.pipeline.validation import (
    POLICIES,
    STEADY,
    Subject,
    compared,
    first_rows,
    measure,
    validation_round,
)
from finemoe.paths import MINIATURES
from finemoe.runtime.loading import load_model
from finemoe.runtime.recorder import record
from finemoe.simulation.events import demanded_sets, iteration_blocks
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE

pytestmark = pytest.mark.timeout(300)  # live runs

MODEL = str(MINIATURES / "mixtral-mini")
PROMPTS = ["What is a list?", "Tell me about rivers.", "How do I sort names?"]


@pytest.fixture(scope="module")
def history() -> RoutingTrace:
    model, tokenizer = load_model(MODEL)
    return record(model, PROMPTS[1:], tokenizer=tokenizer, max_new_tokens=4)


TRACE = RoutingTrace.load(FILE)
SYSTEMS = {
    "on-demand": SystemTimes(0.01),
    "finemoe": SystemTimes(0.03, start_s=0.004, gate_s=0.015),  # adds more than its search takes: inference searches
    "promoe": SystemTimes(0.02, start_s=0.0, gate_s=0.05),  # a thread does
    "mixtral-offloading": SystemTimes(0.05, start_s=0.0, gate_s=0.02, is_synchronous=True),
}
LINKS = {load_s: LinkTimes(load_s, 0.1 * load_s, 1.1 * load_s, 1.2 * load_s) for load_s in (5e-4, 5e-3)}
MACHINE = Machine(1000, prefill_s=0.4, decode_s=0.2, expert_s=0.001, cold_s=0.002, systems=SYSTEMS, links=LINKS)


@pytest.mark.parametrize(
    ("policy", "start_s", "gate_s", "hand_over_s"),
    [
        ("on-demand", 0.0, 0.0, 0.0),
        ("finemoe", 0.004, 0.02 - 0.004 / 4, math.inf),  # what it adds beyond accounting is its searches
        ("promoe", 0.0, 0.05, 0.0),
        ("mixtral-offloading", 0.0, 0.0, 0.0),  # is waited for, and all in what it adds
    ],
)
def test_a_measured_pace_spends_what_was_measured(policy, start_s, gate_s, hand_over_s):
    """An iteration without loads takes what one with everything resident took, and the policy's own time, at once or beside."""
    pace, block = MeasuredPace(MACHINE, policy, 5e-3), next(iteration_blocks(TRACE, 100))
    begins, demanded = demanded_sets(TRACE, block)
    durations = pace.durations(TRACE, block, begins, demanded, np.zeros((block.num_iterations, 1 + TRACE.num_layers)))
    search = durations.search.reshape(-1, TRACE.num_layers, 2)
    np.testing.assert_allclose(search[0], [[start_s, gate_s]] + [[0.0, gate_s]] * 3)
    assert pace.hand_over_s == hand_over_s
    at_once = search.sum(axis=(1, 2)) if hand_over_s else 0.0
    experts = np.add.reduceat(durations.expert, begins[:-1])
    spent = (durations.before + experts + durations.after).reshape(block.num_iterations, TRACE.num_layers).sum(axis=1) + at_once
    np.testing.assert_allclose(spent, np.where(block.is_prefill, 0.4, 0.2) + 4 * SYSTEMS[policy].added_s)


def test_a_measured_pace_knows_its_link():
    beside, waiting = (MeasuredPace(MACHINE, policy, 5e-3) for policy in ("finemoe", "mixtral-offloading"))
    assert (beside.load_s, beside.prefetch_s, waiting.prefetch_s) == pytest.approx((5e-3, 5.5e-3, 6e-3))
    assert (beside.chunk_s, waiting.chunk_s) == pytest.approx((1.1e-3 / 4, 1.2e-3 / 4))  # a quarter of 1 ms of the link
    assert MeasuredPace(MACHINE, "finemoe", 5e-4).chunk_s == pytest.approx(5.5e-4 / 2)  # two of them
    assert (beside.wake_s, beside.resume_s) == pytest.approx((5e-4 + 2e-3, 2e-3))


@pytest.fixture(scope="module")
def subject(history) -> Subject:
    return Subject.load(Path(MODEL), PROMPTS[:1], 3, history, prefetch_distance=3, store_capacity=1000)


def test_a_history_s_first_requests_fill_a_store():
    ends = TRACE.offsets[1:]
    for num_rows in (1, int(ends[0]), int(ends[0]) + 1, int(ends[-1]), 10**6):
        taken = first_rows(TRACE, num_rows)
        assert taken.num_rows >= min(num_rows, TRACE.num_rows)
        assert taken.num_requests == 1 or ends[taken.num_requests - 2] < num_rows


def test_predicted_and_live_runs_serve_the_same_requests(subject):
    """All systems; a steady one is predicted to the last access, a wrong one's counts are told."""
    table = validation_round(subject, PROMPTS[1:2], [0.5], [0.25, 0.5], 1)
    assert table[["policy", "expert_memory"]].to_numpy().tolist() == [[name, share] for name in POLICIES for share in (0.25, 0.5)]
    times = table[["predicted_tpot_s", "measured_tpot_s", "predicted_ttft_s", "measured_ttft_s"]]
    assert (times > 0).all(axis=None)
    np.testing.assert_allclose(table.error, table.predicted_tpot_s / table.measured_tpot_s - 1)
    assert table.are_counts_equal.all()
    steady = table[table.policy.isin(STEADY)]
    for count in ("hits", "late", "misses", "prefetched_bytes", "hit_rate"):
        assert steady[f"predicted_{count}"].tolist() == steady[f"measured_{count}"].tolist()
    assert (steady.predicted_hits > 0).all()
    assert (table.predicted_prefetched_bytes > 0).tolist() == [name != "on-demand" for name in table.policy]


def test_unequal_counts_are_told(subject):
    cache = measure(subject, "on-demand", 5e-4, 0.5), measure(subject, "on-demand", 5e-4, 0.25)
    assert compared(cache[0], cache[0], "on-demand")["are_counts_equal"]
    assert not compared(cache[0], cache[1], "on-demand")["are_counts_equal"]
    assert compared(cache[0], cache[1], "finemoe")["are_counts_equal"]  # whose hits depend on times; accesses do not


def test_an_iteration_s_parts_are_parts_of_it(history):
    parts = measured_breakdown(MODEL, PROMPTS[:1], 2, history, 0.25, prefetch_distance=3, load_s=0.001)
    assert parts["num_layers"] == 32
    assert all(value >= 0 for value in parts.values())
    assert parts["waiting_ms"] > 1  # three quarters of the experts are not there, and one takes a millisecond
    assert parts["engine_ms_per_layer"] == pytest.approx(parts["engine_ms"] / 32)
