"""What may be told in spite of noise, from rounds of made-up times; no test here depends on a machine's speed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from finemoe.artifact.pipeline.noise import (
    FASTER,
    NOT_DECIDED,
    OUTSIDE,
    SLOWER,
    WITHIN,
    _work,
    busy_share,
    in_words,
    judged_as_a_whole,
    judged_groups,
    judged_pairs,
    judged_predictions,
    median_interval,
    spread,
)


def predictions(predicted, measured, busy=0.0) -> pd.Series:
    """The verdict on one cell of so many rounds."""
    rounds = pd.DataFrame(
        {"model": "m", "load_ms": 1.0, "predicted_tpot_s": predicted, "measured_tpot_s": measured, "busy": busy}
    )
    return judged_predictions(rounds, ["model", "load_ms"]).iloc[0]


@pytest.mark.parametrize(
    ("predicted", "measured", "busy", "verdict"),
    [
        ([1.0, 1.01, 1.02], [1.05, 1.06, 1.04], 0.02, WITHIN),
        ([1.0, 1.01, 1.02], [1.5, 1.51, 1.52], 0.02, OUTSIDE),
        ([1.0, 1.0, 1.0], [1.1, 1.12, 1.13], 0.02, NOT_DECIDED),  # quiet, but the rounds disagree
        ([1.0, 1.0, 1.0], [1.0, 1.05, 1.2], 0.02, NOT_DECIDED),  # measured times lie apart by 20 %
        ([1.0, 1.2, 1.0], [1.4, 1.4, 1.4], 0.02, NOT_DECIDED),  # what is predicted from measurements does
        ([1.0, 1.2, 1.0], [1.5, 1.5, 1.5], 0.02, OUTSIDE),  # but 33 % are more than the bar and the noise of 20 %
        ([1.0, 1.0, 1.0], [5.0, 6.0, 5.0], 0.3, OUTSIDE),  # five times off is wrong on a busy machine, too
        ([1.0, 1.0, 1.0], [1.5, 1.5, 1.5], 0.5, NOT_DECIDED),  # as steady as other work that takes half of the cores
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.5, 0.5], NOT_DECIDED),  # other work in most of the rounds
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.5], WITHIN),  # in one, which did not disturb the times
        ([1.0], [1.0], 0.0, NOT_DECIDED),  # a single round has no known noise
    ],
)
def test_a_busy_machine_is_not_taken_for_a_wrong_simulator(predicted, measured, busy, verdict):
    assert predictions(predicted, measured, busy).verdict == verdict


@pytest.mark.parametrize("num_values", [6, 7, 9, 25])
def test_a_median_lies_in_its_interval_in_95_of_100_cases(num_values):
    """As often as a fair coin falls on one side neither too rarely nor too often; a narrower interval holds it less often."""
    low, high = median_interval(np.arange(num_values)[::-1])
    coin = stats.binom(num_values, 0.5)
    assert coin.cdf(high) - coin.cdf(low) >= 0.95 > coin.cdf(high - 1) - coin.cdf(low + 1)


def test_a_few_values_have_no_interval():
    assert np.isnan(median_interval(np.arange(5))).all()


@pytest.mark.parametrize(("true_error", "verdict"), [(0.02, WITHIN), (0.2, OUTSIDE), (-0.2, OUTSIDE)])
def test_many_rounds_tell_on_a_noisy_machine_too(true_error, verdict):
    """Single times lie apart by more than a third, in which three rounds tell nothing."""
    measured = 1 + np.random.default_rng(3).uniform(-0.2, 0.2, 60)
    assert predictions(np.full(3, 1 + true_error), measured[:3]).verdict == NOT_DECIDED
    assert predictions(np.full(60, 1 + true_error), measured).verdict == verdict


def test_other_work_is_no_noise_that_rounds_tell_from_an_error():
    """All rounds were as busy: what is 20 % off may be so for that, what is off by half cannot."""
    assert predictions(np.full(60, 1.2), np.ones(60), busy=0.3).verdict == NOT_DECIDED
    assert predictions(np.full(60, 1.5), np.ones(60), busy=0.3).verdict == OUTSIDE
    assert predictions(np.full(60, 1.0), np.ones(60), busy=0.3).verdict == NOT_DECIDED


def test_counts_have_no_noise():
    rounds = pd.DataFrame({"model": "m", "predicted_tpot_s": [1.0, 1.4], "measured_tpot_s": 1.0, "busy": 0.5})
    for equal, verdict in (([True, True], NOT_DECIDED), ([True, False], OUTSIDE)):
        assert judged_predictions(rounds.assign(are_counts_equal=equal), ["model"]).verdict.item() == verdict


def cells(errors, noise=0.3, busy=0.02, verdict=NOT_DECIDED, policy="finemoe") -> pd.DataFrame:
    return pd.DataFrame({"policy": policy, "error": errors, "noise": noise, "busy": busy, "verdict": verdict})


@pytest.mark.parametrize(
    ("errors", "busy", "verdict"),
    [
        (np.linspace(0.11, 0.35, 27), 0.0, OUTSIDE),  # no cell tells, all of them do
        (-np.linspace(0.11, 0.35, 27), 0.0, OUTSIDE),
        (np.linspace(-0.2, 0.2, 27), 0.0, WITHIN),
        (np.linspace(-0.2, 0.2, 27), 0.2, NOT_DECIDED),
        (np.linspace(0.11, 0.35, 27), 0.2, NOT_DECIDED),  # may be what other work took
        (np.linspace(0.0, 0.25, 27), 0.0, NOT_DECIDED),
        (np.full(5, 0.3), 0.0, NOT_DECIDED),  # too few
    ],
)
def test_what_is_off_in_every_cell_hides_in_none(errors, busy, verdict):
    found = judged_groups(pd.concat([cells(errors, busy=busy), cells(np.zeros(9), policy="promoe")]), "policy")
    assert found.policy.tolist() == ["finemoe", "promoe"]
    assert found.verdict.tolist() == [verdict, WITHIN]
    assert found.num_cells.tolist() == [len(errors), 9]
    assert found.error[0] == pytest.approx(np.median(errors))


def whole(*parts: pd.DataFrame) -> str:
    judged = pd.concat(parts)
    return judged_as_a_whole(judged, judged_groups(judged, "policy"))


def test_what_could_not_be_told_shows_nothing():
    told = cells(np.zeros(103), 0.02, verdict=WITHIN)
    assert whole(told, cells([0.11] * 5, 0.02, verdict=OUTSIDE)) == (
        "within: 103 of 108 cells are shown to be within 10% (target: at least 95%); the median error of 103 cells is; "
        "the largest error is 11% (target: at most 15%)"
    )
    assert whole(told, cells([0.14] * 6, 0.02, verdict=OUTSIDE)).startswith("outside: 103 of 109")
    assert whole(told, cells([0.0] * 6, 0.3)).startswith("not decided: 103 of 109")
    assert whole(told, cells([0.16], 0.05, verdict=NOT_DECIDED)).startswith("not decided: 103 of 104")
    assert whole(told, cells([0.21], 0.05, verdict=OUTSIDE)).startswith("outside: 103 of 104")
    assert whole(told, cells(np.full(6, 0.3), 0.4, policy="promoe")).startswith("outside: 103 of 109")  # as a group


def test_cells_keep_their_numbers():
    found = predictions([1.0, 3.0, 2.0], [2.0, 2.2, 2.1], [0.0, 0.1, 0.3])
    assert (found.predicted_tpot_s, found.measured_tpot_s, found.busy, found.num_rounds) == (2.0, 2.1, 0.1, 3)
    assert found.error == pytest.approx(2.0 / 2.1 - 1)
    assert found.noise == pytest.approx(1.0)  # (3 - 1) / 2
    assert (found.model, found.load_ms) == ("m", 1.0)


def pairs(ours, theirs, busy=0.0) -> pd.Series:
    """The verdict on one cell; a list of lists has several requests a round."""
    rows = [
        {"model": "m", "policy": policy, "round": number, "tpot_s": tpot_s, "busy": busy}
        for policy, rounds in (("finemoe", ours), ("on-demand", theirs))
        for number, requests in enumerate(rounds)
        for tpot_s in np.atleast_1d(requests)
    ]
    return judged_pairs(pd.DataFrame(rows), ["model"], "finemoe", "on-demand").iloc[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "busy", "verdict"),
    [
        ([0.8, 0.81, 0.79], [1.0, 1.0, 1.01], 0.02, FASTER),
        ([1.2, 1.21, 1.22], [1.0, 1.0, 1.01], 0.02, SLOWER),
        ([0.98, 0.97, 0.99], [1.0, 1.0, 1.04], 0.0, NOT_DECIDED),  # by less than on-demand's own spread
        ([0.8, 1.1, 0.8], [1.0, 1.0, 1.0], 0.0, NOT_DECIDED),  # not in every round
        ([0.8, 0.8, 0.8], [1.0, 1.0, 1.0], 0.3, NOT_DECIDED),  # other work takes more than the gain
        ([0.5], [1.0], 0.0, NOT_DECIDED),
    ],
)
def test_a_gain_must_exceed_the_noise(ours, theirs, busy, verdict):
    assert pairs(ours, theirs, busy).verdict == verdict


def test_requests_of_a_round_are_averaged():
    found = pairs([[0.5, 0.7], [0.6, 0.6]], [[1.0, 1.0], [1.0, 1.0]])
    assert (found.ratio, found.verdict, found.num_rounds) == (pytest.approx(0.6), FASTER, 2)
    assert found.noise == pytest.approx(0, abs=1e-12)  # requests differ, rounds do not


def test_figures_say_how_much_was_decided_and_why():
    quiet = pd.DataFrame({"verdict": [WITHIN] * 53 + [NOT_DECIDED], "noise": [0.02] * 53 + [0.11]})
    assert in_words(quiet, WITHIN, OUTSIDE) == (
        "within 53 of 54, outside 0 of 54, not decided 1 of 54 (quiet: noise 2% in the median, 11% at most)"
    )
    busy = pd.DataFrame({"verdict": [FASTER] + [NOT_DECIDED] * 8, "noise": [0.05] + [0.4] * 8})
    assert in_words(busy, FASTER, SLOWER) == (
        "faster 1 of 9, slower 0 of 9, not decided 8 of 9 (noisy: noise 40% in the median, 40% at most)"
    )
    once = pd.DataFrame({"verdict": [NOT_DECIDED], "noise": [np.nan]})
    assert (
        in_words(once, WITHIN, OUTSIDE) == "within 0 of 1, outside 0 of 1, not decided 1 of 1 (noise unknown from a single round)"
    )


def test_spread_is_relative_and_unknown_for_one():
    assert spread([1.0, 2.0, 4.0]) == 1.5
    assert np.isnan(spread([1.0]))


@pytest.mark.parametrize(("got", "share"), [(1.0, 0.0), (0.25, 0.75), (1.1, 0.0)])
def test_what_threads_did_not_get_others_took(got, share, monkeypatch):
    monkeypatch.setattr("finemoe.artifact.pipeline.noise._work", lambda length_s: (got * length_s, length_s))
    assert busy_share() == pytest.approx(share)


@pytest.mark.parametrize(("num_cores", "num_threads"), [(1, 1), (2, 2), (64, 2)])
def test_as_many_threads_ask_as_the_engine_uses(num_cores, num_threads, monkeypatch):
    asked = []
    monkeypatch.setattr("finemoe.artifact.pipeline.noise._num_cores", lambda: num_cores)
    monkeypatch.setattr("finemoe.artifact.pipeline.noise._work", lambda length_s: asked.append(length_s) or (1.0, 1.0))
    busy_share()
    assert len(asked) == num_threads


def test_what_a_thread_got_is_processor_time(monkeypatch):
    """Of four seconds that pass it has one."""
    passed_s, had_s = iter([0.0, 1.0, 4.0, 4.0]), iter([7.0, 8.0])
    monkeypatch.setattr("finemoe.artifact.pipeline.noise.time.perf_counter", lambda: next(passed_s))
    monkeypatch.setattr("finemoe.artifact.pipeline.noise.time.thread_time", lambda: next(had_s))
    assert _work(2.0) == (1.0, 4.0)
