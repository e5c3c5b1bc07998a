"""What is drawn from a trace."""

import numpy as np
import pytest

from finemoe.advice.sample import sample_of
from finemoe.traces import DECODE, PREFILL, RoutingTrace


def made(lengths: list[int], splits: tuple[str, ...] = (), prompt: int = 0) -> RoutingTrace:
    """Every row's one expert tells its request."""
    ids = np.repeat(np.arange(len(lengths)), lengths)[:, None, None]
    step = np.concatenate([np.maximum(0, np.arange(length) - max(prompt - 1, 0)) for length in lengths])
    phase = np.concatenate([np.where(np.arange(length) < prompt, PREFILL, DECODE) for length in lengths])
    names = tuple(f"r{number}" for number in range(len(lengths)))
    offsets = np.cumsum([0, *lengths])
    return RoutingTrace.from_topk(ids, np.ones(ids.shape), offsets, 128, step, phase, request_ids=names, splits=splits)


def test_served_requests_and_the_history_are_never_the_same():
    sample = sample_of(made([10] * 20), served_rows=1000, history_rows=1000)
    served, history = set(sample.served.request_ids), set(sample.history.request_ids)
    assert (len(served), len(history)) == (6, 14)
    assert not served & history


def test_the_traces_own_splits_are_kept():
    sample = sample_of(made([5] * 6, ("served", "history") * 3), 1000, 1000)
    assert sample.served.request_ids == ("r0", "r2", "r4")
    assert sample.history.request_ids == ("r1", "r3", "r5")


def test_a_draw_is_of_whole_requests_and_seeded():
    trace = made([10] * 100)
    sample = sample_of(trace, served_rows=95, history_rows=55)
    assert (sample.served.num_requests, sample.history.num_requests) == (9, 5)
    assert sample.served.request_ids == sample_of(trace, 95, 55).served.request_ids
    assert sample.served.request_ids != sample_of(trace, 95, 55, seed=1).served.request_ids
    assert "9 requests (90 tokens), drawn at random from 30 requests (300 tokens)" in sample.notes[0]


def test_few_requests_are_all_served():
    sample = sample_of(made([10] * 4), 1000, 1000)
    assert (sample.served.num_requests, sample.history) == (4, None)
    assert "start empty" in sample.notes[0]


@pytest.mark.parametrize(("prompt", "taken"), [(0, 30), (5, 30), (50, 30)])
def test_a_request_that_is_too_long_is_cut_at_an_iteration_or_within_its_prompt(prompt, taken):
    sample = sample_of(made([100], prompt=prompt), served_rows=30, history_rows=30)
    assert sample.served.num_rows == taken
