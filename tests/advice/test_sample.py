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
    sample = sample_of(trace, served_rows=95, history_rows=55)  # what is left is less than a fifth
    assert (sample.served.num_requests, sample.history.num_requests) == (9, 5)
    assert sample.served.request_ids == sample_of(trace, 95, 55).served.request_ids
    assert sample.served.request_ids != sample_of(trace, 95, 55, seed=1).served.request_ids
    assert "9 requests (90 tokens), drawn at random from 30 requests (300 tokens)" in sample.notes[0]


def test_few_requests_are_all_served():
    sample = sample_of(made([10] * 4), 1000, 1000)
    assert (sample.served.num_requests, sample.history) == (4, None)
    assert "start empty" in sample.notes[0]


def rows_of(trace: RoutingTrace) -> list[tuple[int, int]]:
    """(phase, step) of every row."""
    return list(zip(trace.phase.tolist(), trace.step.tolist(), strict=True))


@pytest.mark.parametrize(("prompt", "prompt_rows"), [(0, 0), (5, 5), (50, 15)])
def test_a_request_that_is_too_long_is_cut_and_keeps_decode_steps(prompt, prompt_rows):
    sample = sample_of(made([100], prompt=prompt), served_rows=30, history_rows=30)
    rows = rows_of(sample.served)
    assert len(rows) == 30
    assert sum(phase == PREFILL for phase, _ in rows) == prompt_rows
    assert sum(phase == DECODE for phase, _ in rows) == 30 - prompt_rows


def test_a_prompt_alone_is_cut():
    trace = made([100], prompt=100)
    assert sample_of(trace, served_rows=30, history_rows=30).served.num_rows == 30


def test_steps_of_several_rows_are_not_cut():
    ids = np.zeros((40, 1, 1), dtype=int)
    trace = RoutingTrace.from_topk(ids, np.ones(ids.shape), [0, 40], 2, np.repeat(np.arange(10), 4), np.ones(40, dtype=int))
    assert sample_of(trace, served_rows=10, history_rows=10).served.num_rows == 8


@pytest.mark.parametrize("seed", range(6))
def test_long_requests_among_short_ones_leave_enough(seed):
    """The first request that does not fit is cut to what is left."""
    sample = sample_of(made([10] * 30 + [500] * 30, ("served",) * 59 + ("history",)), 400, 400, seed)
    assert 320 <= sample.served.num_rows <= 400
