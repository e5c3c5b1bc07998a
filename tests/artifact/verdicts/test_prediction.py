"""The claim on prediction (Fig. 4), on made-up tables and on the shipped one."""

import pandas as pd
import pytest

from finemoe.artifact.claims import Claim
from finemoe.artifact.verdicts.prediction import COARSE, FINE, RANDOM_STORE, distance_tests, prediction_claim, prediction_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim

PANELS = (("gpt-oss-20b", "mixed"), ("mixtral-mini", "a"), ("mixtral-mini", "b"))
FALLING = (0.9, 0.8, 0.7, 0.6)


def hit_rates(**of_real: tuple[float, ...]) -> pd.DataFrame:
    """Four distances, ± 0.01: fine falls from 0.9 to 0.6, coarse stays at 0.5; on real routing as named."""
    rows = []
    for model, dataset in PANELS:
        changed = of_real if model == "gpt-oss-20b" else {}
        of_method = {FINE: changed.get("fine", FALLING), RANDOM_STORE: changed.get("random", FALLING)}
        of_method |= dict(zip(COARSE, ((0.5,) * 4, (0.4,) * 4), strict=True))
        for method, values in of_method.items():
            rows += [
                {"distance": distance, "hit_rate": value, "low": value - 0.01, "high": value + 0.01}
                | {"method": method, "model": model, "dataset": dataset}
                for distance, value in enumerate(values, start=1)
            ]
        rows.append({"hit_rate": 0.55, "method": "on-demand (LRU)", "model": model, "dataset": dataset})  # a grey line
    return pd.DataFrame(rows)


def claim_of(table: pd.DataFrame) -> Claim:
    return prediction_claim(prediction_tests(table), distance_tests(table))


def test_above_everywhere_and_falling_holds():
    tests = prediction_tests(hit_rates())
    assert tests[["fine_above_coarse", "fine_falls"]].to_numpy().all()
    assert tests.gain_at_3.tolist() == pytest.approx([0.2] * 3)  # over the better of the two
    claim = claim_of(hit_rates())
    assert claim.verdict == "holds"
    assert "at distances 1, 2, 3, 4 of 1 to 4" in claim.why


@pytest.mark.parametrize(("last", "above"), [(0.53, True), (0.51, False), (0.4, False)])
def test_one_distance_of_four_on_real_routing_holds_weaker(last, above):
    table = hit_rates(fine=(0.9, 0.8, 0.7, last))
    assert distance_tests(table).fine_above_coarse.loc["gpt-oss-20b"].tolist() == [True, True, True, above]
    assert prediction_tests(table).fine_above_coarse.tolist() == [above, True, True]
    claim = claim_of(table)
    assert claim.verdict == ("holds" if above else "holds weaker")
    if not above:
        assert claim.reproduced.startswith("decided by fine above coarse at a distance: 3 of 4 (gpt-oss-20b); ")


def test_miniatures_do_not_outvote_real_routing():
    """Half of real routing's distances are not most of them, even if the miniatures show all."""
    claim = claim_of(hit_rates(fine=(0.9, 0.8, 0.4, 0.3)))
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by fine above coarse at a distance: 2 of 4 (gpt-oss-20b); ")


@pytest.mark.parametrize(("last", "falls"), [(0.87, True), (0.89, False), (0.95, False)])
def test_falling_means_intervals_apart(last, falls):
    table = hit_rates(fine=(0.9, 0.9, 0.9, last))
    assert prediction_tests(table).fine_falls.tolist() == [falls, True, True]
    assert claim_of(table).verdict == ("holds" if falls else "does not hold")


def test_maps_drawn_at_random_are_reported_and_do_not_decide():
    claim = claim_of(hit_rates(random=(0.9, 0.3, 0.3, 0.3)))
    assert claim.verdict == "holds"
    assert "drawn at random from the history at 1: " in claim.why
    assert "drawn at random from the history at none: " in claim_of(hit_rates(random=(0.3,) * 4)).why


def test_without_distance_3_the_first_is_shown():
    table = hit_rates()
    tests = prediction_tests(table[table.distance != 3])
    assert tests.gain_at_3.tolist() == pytest.approx([0.4] * 3)


def test_figure_4_s_flags_are_those_of_a_loop():
    table = figure_table("f4")
    rows = {(row.model, row.dataset, row.method, row.distance): row for row in table.itertuples()}
    by_distance, tests = distance_tests(table), prediction_tests(table)
    for (model, dataset), found in tests.iterrows():
        flags = []
        for distance in range(1, 9):
            fine, *coarse = (rows[model, dataset, method, distance] for method in (FINE, *COARSE))
            flags.append(all(fine.low > one.high for one in coarse))
            gain = fine.hit_rate - max(one.hit_rate for one in coarse)
            assert by_distance.gain[model, dataset, distance] == pytest.approx(gain)
            assert by_distance.fine_above_coarse[model, dataset, distance] == flags[-1]
        assert found.fine_above_coarse == all(flags)
        assert found.fine_falls == (rows[model, dataset, FINE, 8].high < rows[model, dataset, FINE, 1].low)


def test_figure_4_is_the_shipped_claim():
    assert outcome(claim_of(figure_table("f4"))) == shipped_claim("F4")
