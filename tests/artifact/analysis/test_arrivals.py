"""Arrivals and queues against the published statistics and plain loops."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finemoe.artifact.analysis.arrivals import azure_like, azure_trace, queued
from finemoe.errors import FinemoeError


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
    with pytest.raises(FinemoeError, match="contains 40 requests, but 50 are requested"):
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
