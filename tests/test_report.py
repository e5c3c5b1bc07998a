"""Counters told step by step, against sums written out."""

import math
import pickle

from finemoe.report import REQUESTS_KEPT, Counters, Report


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


def told_of(num_requests: int, kept: int, monkeypatch) -> tuple[Report, list[tuple[float, int, float]]]:
    """A report of requests with a prefill, some decode steps and hits each, and what each of them has."""
    monkeypatch.setattr("finemoe.report.REQUESTS_KEPT", kept)
    counters, expected = Counters(2), []
    for number in range(num_requests):
        counters.enter_request(number)
        counters.count_prefill(number + 1.0)
        for step in range(number % 3):
            counters.count_decode_step(step + 2.0)
        counters.hits[number % 2] += number
        counters.stall_s += number / 2
        expected.append((number + 1.0, number, number / 2))
    return Report.of(counters, "p", "e", 0), expected


def test_the_last_requests_are_kept_and_totals_have_all(monkeypatch):
    for num_requests, kept in [(1, 5), (5, 5), (6, 5), (40, 5), (40, 1)]:
        report, expected = told_of(num_requests, kept, monkeypatch)
        assert [(one.ttft_s, one.hits, one.stall_s) for one in report.requests] == expected[-kept:]
        assert report.num_earlier_requests == max(0, num_requests - kept)
        assert report.ttft_s == sum(one[0] for one in expected) / num_requests
        assert report.hits == sum(one[1] for one in expected)
        assert report.stall_s == sum(one[2] for one in expected)
        assert report.num_prefills == num_requests


def test_a_request_that_goes_on_keeps_its_counts_while_it_is_kept(monkeypatch):
    """Of the three requests two are kept; the first went on before the third came."""
    monkeypatch.setattr("finemoe.report.REQUESTS_KEPT", 2)
    counters = Counters(1)
    for number, hits in [(0, 1), (1, 10), (0, 100), (1, 1000)]:
        counters.enter_request(number)
        counters.hits[0] += hits
    assert [one.hits for one in counters.requests()] == [101, 1010]
    assert counters.num_earlier_requests == 0
    counters.enter_request(2)
    counters.hits[0] += 5
    assert [one.hits for one in counters.requests()] == [1010, 5]
    counters.enter_request(0)
    counters.hits[0] += 7
    assert [one.hits for one in counters.requests()] == [7, 5]
    assert (counters.num_earlier_requests, sum(counters.hits)) == (2, 1123)


def test_counters_stay_small():
    """As many requests again take no more memory."""
    counters, sizes = Counters(1), []
    for number in range(3 * REQUESTS_KEPT):
        counters.enter_request(number)
        counters.count_prefill(1.0)
        counters.count_decode_step(0.5)
        if number % REQUESTS_KEPT == REQUESTS_KEPT - 1:
            sizes.append(len(pickle.dumps(counters)))
    assert sizes[2] < 1.05 * sizes[1] < 1.2 * sizes[0]
