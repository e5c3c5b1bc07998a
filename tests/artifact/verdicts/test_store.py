"""The claim on the store's memory (Fig. 18), on made-up stores and on the shipped table."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.store import store_claim, store_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim


def stores(**whole_mb: float) -> pd.DataFrame:
    """Models whose stores of 32,000 maps take so much with embeddings and 20 MB without, and half of it at 16,000."""
    rows = [
        (model, content, capacity, size * capacity / 32_000)
        for model, whole in whole_mb.items()
        for content, size in (("maps", 20.0), ("maps and embeddings", whole))
        for capacity in (16_000, 32_000)
    ]
    return pd.DataFrame(rows, columns=["model", "content", "capacity", "store_mb"])


@pytest.mark.parametrize(("whole_mb", "verdict"), [(199.9, "holds"), (200.0, "does not hold"), (300.0, "does not hold")])
def test_the_bound_is_below_200_mb(whole_mb, verdict):
    tests = store_tests(stores(one=whole_mb))
    assert tests.is_below.tolist() == [whole_mb < 200]
    assert tests.is_below_without.tolist() == [True]
    assert store_claim(tests, 32_000).verdict == verdict


def test_models_keep_their_order_and_most_hold_weaker():
    tests = store_tests(stores(z=100.0, a=250.0, m=150.0))
    assert tests.index.tolist() == ["z", "a", "m"]
    claim = store_claim(tests, 32_000)
    assert claim.verdict == "holds weaker"
    assert claim.reproduced.endswith(
        "z 100 MB (20 MB without embeddings); a 250 MB (20 MB without embeddings); m 150 MB (20 MB without embeddings)"
    )
    assert claim.why == (
        "At 32,000 maps 2 of 3 stores stay below 200 MB with embeddings, 3 without. For z the embeddings take 4 times what the "
        "maps take."
    )


def test_figure_18_is_the_shipped_claim():
    table = figure_table("f18")
    assert outcome(store_claim(store_tests(table), table.capacity.max())) == shipped_claim("F18")
