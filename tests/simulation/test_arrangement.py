"""Requests as a server runs them: batches and arrivals, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finemoe
from finemoe.errors import FinemoeError
from finemoe.simulation.arrangement import Arrangement
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
    prompts, news = np.array([1, 7, 30]), np.array([2, 1, 20])
    arrangement = Arrangement.arriving(TRACE, np.array([0.0, 1.5, 1.6]), prompts, news, seed=3)
    trace = arrangement.trace
    for request, (prompt, new) in enumerate(zip(prompts.tolist(), news.tolist(), strict=True)):
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
        Arrangement.arriving(TRACE.decode(), np.array([0.0, 0.3]), np.array([5, 9]), np.array([3, 4]))


def test_lookahead_can_be_left_out_or_thinned():
    assert TRACE.with_strides(()).lookahead_ids is None
    thinned = TRACE.with_strides((2,))
    assert thinned.lookahead_strides == (2,)
    np.testing.assert_array_equal(thinned.lookahead(slice(None), 2), TRACE.lookahead(slice(None), 2))
