"""Intervals against plain computations."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from finemoe.intervals import bootstrap_mean, bootstrap_median, bootstrap_ratio


def test_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = bootstrap_mean(values, num_resamples=9999)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, random_state=0).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_a_ratio_resamples_requests_not_rows():
    hits, accesses = np.array([90.0, 0.0]), np.array([100.0, 100.0])
    interval = bootstrap_ratio(hits, accesses)
    assert interval == pytest.approx((0.45, 0.0, 0.9))


def test_intervals_are_reproducible():
    values = np.random.default_rng(1).random((20, 3))
    np.testing.assert_array_equal(bootstrap_mean(values, seed=4), bootstrap_mean(values, seed=4))


def test_one_request_or_round_has_no_interval():
    """Every resample of one is the same: a width of nothing would look like certainty."""
    for found in (
        bootstrap_mean(np.array([0.5])),
        bootstrap_ratio(np.array([3.0]), np.array([6.0])),
        bootstrap_median(np.array([0.5])),
    ):
        assert found.value == 0.5
        assert np.isnan([found.low, found.high]).all()
