"""The claim on batch sizes (Fig. 16b), on made-up gains and on the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.batches import batch_claim, batch_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim, shipped_gains


def gains(low: dict[int, float]) -> pd.DataFrame:
    """Gains in TTFT and TPOT over two baselines on one dataset, one of which has these lower bounds by batch size."""
    rows = [
        {"model": "mixtral-mini", "dataset": "questions", "batch_size": size, "quantity": quantity, "baseline": baseline}
        | {"gain": 0.5, "low": 0.4 if baseline == "ProMoE" else bound}
        for quantity in ("ttft_s", "tpot_s", "hit_rate")
        for baseline in ("ProMoE", "MoE-Infinity")
        for size, bound in low.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("low", "verdict", "sizes"),
    [
        ({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1}, "holds", "1, 2, 4, 8"),
        ({1: 0.1, 2: 0.1, 4: 0.1, 8: -0.1}, "holds", "1, 2, 4"),
        ({1: 0.1, 2: 0.1, 4: 0.0, 8: -0.1}, "does not hold", "1, 2"),  # half is not most, and touching zero is not ahead
        ({1: -0.1, 2: -0.1, 4: -0.1, 8: -0.1}, "does not hold", "none"),
    ],
)
def test_most_batch_sizes_are_more_than_half(low, verdict, sizes):
    tests = batch_tests(gains(low))
    assert tests["questions", "tpot_s"].to_dict() == {size: bound > 0 for size, bound in low.items()}
    claim = batch_claim(gains(low))
    assert claim.verdict == verdict
    assert f"questions, TPOT: lowest at {sizes}" in claim.reproduced
    lowest = 2 * sum(bound > 0 for bound in low.values())
    assert f"in {lowest} of {2 * len(low)} cells" in claim.why


def test_hit_rates_do_not_count():
    table = gains({1: 0.1})
    assert batch_claim(table.assign(low=table.low.where(table.quantity != "hit_rate", -1.0))) == batch_claim(table)


def test_figure_16b_is_the_shipped_claim():
    found = shipped_gains(figure_table("f16b"), pd.DataFrame(), by=("model", "dataset", "batch_size"))
    assert outcome(batch_claim(found)) == shipped_claim("F16b")
