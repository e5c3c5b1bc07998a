"""Counters told step by step, against sums written out."""

import math

from finemoe.report import Counters, Report


def told() -> Counters:
    """Two requests; the first one's prefill turns out to go on."""
    counters = Counters(1)
    counters.enter_request(0)
    counters.count_prefill(2.0)
    return counters


def test_a_prefill_that_goes_on_is_one_prefill_of_the_whole_time():
    counters = told()
    counters.correct_prefill(2.0, 0.5)
    counters.enter_request(1)
    counters.count_prefill(4.0)
    report = Report.of(counters, "p", "e", 0)
    assert [one.ttft_s for one in report.requests] == [2.5, 4.0]
    assert (report.ttft_s, report.num_prefills, report.num_unknown_steps) == (3.25, 2, 0)


def test_a_prefill_that_may_have_gone_on_has_no_known_time():
    counters = told()
    counters.correct_prefill(2.0, None)
    counters.enter_request(1)
    counters.count_prefill(4.0)
    report = Report.of(counters, "p", "e", 0)
    assert math.isnan(report.requests[0].ttft_s)
    assert report.requests[1].ttft_s == 4.0
    assert (report.ttft_s, report.num_prefills, report.num_unknown_steps) == (4.0, 2, 1)


def test_a_prefill_from_before_a_reset_is_not_corrected():
    counters = told()
    counters.reset()
    counters.enter_request(0)
    counters.correct_prefill(2.0, 0.5)
    report = Report.of(counters, "p", "e", 0)
    assert math.isnan(report.ttft_s)
    assert math.isnan(report.requests[0].ttft_s)


def test_a_reset_leaves_alone_what_a_device_counts_meanwhile():
    counters = Counters(1)
    moved = counters.moved_by_device()
    moved[:] = 5, 7, 2
    counters.reset()
    moved[:] += 1, 2, 3  # by compiled code that knows of no reset
    assert (counters.prefetched_bytes, counters.demand_bytes, counters.wasted_bytes) == (1, 2, 3)
    assert moved.tolist() == [6, 9, 5]
