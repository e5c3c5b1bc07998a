"""Requests as a server runs them: batches, arrivals, queues, against plain loops."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finemoe
from finemoe.artifact.analysis.arrivals import azure_like, azure_trace, queued
from finemoe.errors import FinemoeError
from finemoe.simulation.arrangement import Arrangement, with_lookahead
from finemoe.simulation.events import demanded_sets, iteration_blocks
from finemoe.traces import DECODE, PREFILL, RoutingTrace
from tests.simulation.golden import FILE
from tests.simulation.test_events import mixed_trace

TRACE = RoutingTrace.load(FILE)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 6))
def test_a_batch_s_iteration_demands_the_union_of_its_requests(seed, batch_size):
    trace = mixed_trace(seed)
    arranged = Arrangement.side_by_side(trace, batch_size).trace
    expected = []
    for first in range(0, trace.num_requests, batch_size):
        batch = range(first, min(first + batch_size, trace.num_requests))
        rows = {request: np.arange(*trace.offsets[[request, request + 1]]) for request in batch}
        for step in sorted({int(s) for request in batch for s in trace.step[rows[request]]}):
            running = np.concatenate([rows[request][trace.step[rows[request]] == step] for request in batch])
            expected += [np.unique(trace.expert_ids[running, layer]).tolist() for layer in range(trace.num_layers)]
    found = []
    for block in iteration_blocks(arranged, 7):
        begins, demanded = demanded_sets(arranged, block)
        found += [one.tolist() for one in np.split(demanded, begins[1:-1])]
    assert found == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 6))
def test_rows_of_a_batch_attend_to_their_own_request(seed, batch_size):
    trace = mixed_trace(seed)
    arrangement = Arrangement.side_by_side(trace, batch_size)
    lengths = [
        arrangement.contexts[rows].max(initial=0) for rows in map(arrangement.trace.rows_of, range(len(arrangement.arrivals_s)))
    ]
    own = np.diff(trace.offsets)
    assert lengths == [own[first : first + batch_size].max() for first in range(0, len(own), batch_size)]
    assert sorted(arrangement.contexts) == sorted(Arrangement.one_by_one(trace).contexts)


def test_batches_are_replayed_as_requests():
    report = finemoe.replay(TRACE.split("served"), "on-demand", 0.5, batch_size=2)
    assert len(report.requests) == 1
    assert report.num_prefills == 1
    with pytest.raises(FinemoeError, match="batch_size is 0"):
        finemoe.replay(TRACE, "on-demand", 0.5, batch_size=0)


def test_arriving_requests_have_the_lengths_asked_for_and_only_recorded_rows():
    arrivals = pd.DataFrame({"arrival_s": [0.0, 1.5, 1.6], "prompt_tokens": [1, 7, 30], "new_tokens": [2, 1, 20]})
    arrangement = Arrangement.arriving(TRACE, arrivals, seed=3)
    trace = arrangement.trace
    for request, (prompt, new) in enumerate(arrivals[["prompt_tokens", "new_tokens"]].to_numpy()):
        phase, step = trace.phase[trace.rows_of(request)], trace.step[trace.rows_of(request)]
        assert (phase == PREFILL).sum() == prompt
        assert (phase == DECODE).sum() == new - 1  # the first token comes from the prefill
        assert step.tolist() == [0] * prompt + list(range(1, new))
    for phase in (PREFILL, DECODE):
        recorded = {row.tobytes() for row in TRACE.expert_ids[TRACE.phase == phase]}
        assert {row.tobytes() for row in trace.expert_ids[trace.phase == phase]} <= recorded
    assert arrangement.arrivals_s.tolist() == [0.0, 1.5, 1.6]


def test_a_trace_without_prompts_makes_no_requests():
    with pytest.raises(FinemoeError, match="needs prompt tokens"):
        Arrangement.arriving(TRACE.decode(), azure_like(2))


def test_lookahead_can_be_left_out_or_thinned():
    assert with_lookahead(TRACE, ()).lookahead_ids is None
    thinned = with_lookahead(TRACE, (2,))
    assert thinned.lookahead_strides == (2,)
    np.testing.assert_array_equal(thinned.lookahead(slice(None), 2), TRACE.lookahead(slice(None), 2))


def test_generated_arrivals_have_the_published_statistics():
    arrivals = azure_like(20_000, seed=1)
    assert arrivals.prompt_tokens.mean() == pytest.approx(1154.7, rel=0.05)
    assert arrivals.prompt_tokens.std() == pytest.approx(1108.8, rel=0.1)
    assert arrivals.new_tokens.mean() == pytest.approx(211.1, rel=0.05)
    assert len(arrivals) / arrivals.arrival_s.iloc[-1] == pytest.approx(2.91, rel=0.03)
    pd.testing.assert_frame_equal(azure_like(5, seed=4), azure_like(5, seed=4))


def test_arrivals_are_drawn_from_a_file(tmp_path):
    path = tmp_path / "azure.csv"
    times = [f"2023-11-16 18:15:{second:02d}.5000000" for second in range(40)]
    pd.DataFrame({"TIMESTAMP": times, "ContextTokens": range(10, 50), "GeneratedTokens": range(1, 41)}).to_csv(path, index=False)
    drawn = azure_trace(path, 20, rate_per_s=2.0, seed=0)
    assert drawn.arrival_s.is_monotonic_increasing
    assert drawn.arrival_s.iloc[-1] == pytest.approx(19 / 2.0)
    assert (drawn.prompt_tokens - drawn.new_tokens == 9).all()
    with pytest.raises(FinemoeError, match="holds 40 requests, 50 are wanted"):
        azure_trace(path, 50)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FinemoeError, match="has no column TIMESTAMP"):
        azure_trace(path, 1)


@given(times=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), min_size=1, max_size=20))
def test_a_queue_takes_requests_in_order(times):
    arrivals_s = np.cumsum([gap for gap, _ in times])
    service_s = np.array([duration for _, duration in times])
    waits, end = queued(arrivals_s, service_s), 0.0
    for arrival, service, wait in zip(arrivals_s, service_s, waits, strict=True):
        start = max(arrival, end)
        assert wait == pytest.approx(start - arrival, abs=1e-9)
        end = start + service
