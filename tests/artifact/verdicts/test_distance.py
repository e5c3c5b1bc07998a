"""The claim on the prefetch distance (Fig. 15), on made-up requests and on the shipped tables."""

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.verdicts.distance import REPORTED_DISTANCES, distance_claim, distance_minima
from tests.artifact.tables import requests
from tests.artifact.verdicts.shipped import figure_table, miniatures, outcome, real_requests, shipped_claim


def at_distances(tpot_s: dict[int, list[float]], ttft_s: dict[int, float] | None = None) -> pd.DataFrame:
    """FineMoE's requests at these distances; every TTFT is lowest inside unless given."""
    ttft_s = ttft_s or dict.fromkeys(tpot_s, 2.0) | {3: 1.0}
    tables = [
        requests(FineMoE=values).assign(dataset="d", prefetch_distance=distance, ttft_s=ttft_s[distance])
        for distance, values in tpot_s.items()
    ]
    return pd.concat(tables).assign(model="mixtral-mini")


INSIDE = {1: [3.0] * 3, 3: [1.0] * 3, 8: [2.0] * 3}


def test_a_minimum_inside_holds():
    minima = distance_minima(at_distances(INSIDE))
    assert minima.best_distance.tolist() == [3]
    assert minima.is_inside.tolist() == [True]
    assert minima[["below_shortest", "below_longest"]].to_numpy().tolist() == [pytest.approx([2 / 3, 1 / 2])]
    assert distance_claim(minima).verdict == "holds"


def test_falling_to_the_end_does_not_hold():
    falling = distance_minima(at_distances({1: [3.0] * 3, 3: [2.0] * 3, 8: [1.0] * 3}))
    assert falling.is_inside.tolist() == [False]
    assert distance_claim(falling).verdict == "does not hold"


def test_a_minimum_that_one_request_contradicts_is_not_clear():
    """The mean is lowest inside, but the paired interval against the longest distance reaches below zero."""
    unclear = distance_minima(at_distances(INSIDE | {8: [0.9, 0.9, 1.6]}))
    assert unclear.best_distance.tolist() == [3]
    assert unclear.is_inside.tolist() == [False]


@pytest.mark.parametrize(("best", "is_near"), [(2, True), (4, True), (5, False)])
def test_near_the_reported_is_within_a_layer(best, is_near):
    assert REPORTED_DISTANCES["mixtral-mini"] == 3
    tpot_s = {distance: [2.0] * 3 for distance in (1, 2, 3, 4, 5, 8)} | {best: [1.0] * 3}
    claim = distance_claim(distance_minima(at_distances(tpot_s)))
    assert f"within one layer of the reported distance in {int(is_near)} of 1" in claim.why
    assert claim.verdict == ("holds" if is_near else "does not hold")


@pytest.mark.parametrize(
    ("ttft_s", "best", "verdict"),
    [
        ({1: 3.0, 3: 1.0, 8: 2.0}, 3, "holds"),
        ({1: 3.0, 3: 2.0, 8: 1.0}, 8, "does not hold"),
        ({1: 1.0, 3: 2.0, 8: 3.0}, 1, "does not hold"),
    ],
)
def test_ttft_must_have_its_minimum_inside_too(ttft_s, best, verdict):
    """Real routing tells TPOT alone; its minimum does not make up for a TTFT that has none on the miniatures."""
    one = at_distances(INSIDE, ttft_s)
    minima = distance_minima(pd.concat([one, one.assign(model="gpt-oss-20b", ttft_s=np.nan)])).set_index("model")
    assert minima.best_ttft_distance["mixtral-mini"] == best
    assert np.isnan(minima.best_ttft_distance["gpt-oss-20b"])
    assert distance_claim(minima.reset_index()).verdict == verdict


def minima_of_means(means: pd.DataFrame) -> pd.DataFrame:
    """Rows as of `distance_minima`, from means; whether both ends are clearly above, paired over requests, means cannot tell."""
    rows = []
    for (model, dataset), part in means[means.system == "FineMoE"].groupby(["model", "dataset"], sort=False):
        line = part.set_index("prefetch_distance")
        best, ends = line.tpot_s.idxmin(), [line.index.min(), line.index.max()]
        below = [1 - line.tpot_s[best] / line.tpot_s[end] for end in ends]
        rows.append(
            {"model": model, "dataset": dataset, "best_distance": best, "reported": REPORTED_DISTANCES[model]}
            | {"below_shortest": below[0], "below_longest": below[1], "shortest": ends[0], "longest": ends[1]}
            | {"is_inside": best not in ends}
            | {"best_ttft_distance": float(line.ttft_s.idxmin())}
        )
    return pd.DataFrame(rows)


def test_figure_15_is_the_shipped_claim():
    real = real_requests("f15", system="FineMoE", testbed="6x-rtx3090", expert_memory=0.25)
    minima = pd.concat([minima_of_means(miniatures(figure_table("f15"))), distance_minima(real)], ignore_index=True)
    assert outcome(distance_claim(minima)) == shipped_claim("F15")
