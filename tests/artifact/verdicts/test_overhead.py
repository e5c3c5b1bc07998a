"""The claim on the synchronous overhead (Fig. 17), on made-up iterations and on the shipped tables."""

import pandas as pd
import pytest

from finemoe.artifact.verdicts.overhead import overhead_claim, overhead_tests
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim


def an_engine(engine_ms: float, rest_ms: float) -> pd.DataFrame:
    """An engine that takes this long over 10 layers, in an iteration whose other parts take `rest_ms`."""
    live = pd.DataFrame({"engine_ms_per_layer": [engine_ms / 10], "num_layers": [10]}, index=["mixtral-mini"])
    parts = {"attention_ms": [0.5 * rest_ms], "experts_ms": [0.25 * rest_ms], "waiting_ms": [0.25 * rest_ms]}
    return overhead_tests(live, pd.DataFrame(parts, index=["mixtral-mini"]))


@pytest.mark.parametrize(
    ("engine_ms", "rest_ms", "is_short", "is_small_share"),
    [
        (1.0, 999.0, True, True),
        (40.0, 360.0, True, False),
        (60.0, 9_940.0, False, True),
        (60.0, 60.0, False, False),
        (49.9, 10_000.0, True, True),
        (50.0, 10_000.0, False, True),  # "below 50 ms"
        (1.0, 99.0, True, True),  # exactly 1 %
        (1.0, 98.0, True, False),
    ],
)
def test_both_bounds_are_the_papers(engine_ms, rest_ms, is_short, is_small_share):
    tests = an_engine(engine_ms, rest_ms).loc["mixtral-mini"]
    assert tests.whole_ms == pytest.approx(engine_ms + rest_ms)
    assert tests.share == pytest.approx(engine_ms / (engine_ms + rest_ms))
    assert (tests.is_short, tests.is_small_share) == (is_short, is_small_share)
    claim = overhead_claim(an_engine(engine_ms, rest_ms))
    assert claim.verdict == ("holds" if is_short and is_small_share else "does not hold")


def test_the_statement_that_fails_decides():
    claim = overhead_claim(an_engine(40.0, 360.0))
    assert claim.reproduced == (
        "decided by at most 1 % of an iteration: 0 of 1 (all three models); mixtral-mini 40.0 ms, 10% of 400 ms"
    )
    assert "take 4000 µs a layer" in claim.why


def test_figure_17_is_the_shipped_claim():
    live, modelled = (figure_table(stem).set_index("model") for stem in ("f17_measured", "f17"))
    assert outcome(overhead_claim(overhead_tests(live, modelled))) == shipped_claim("F17")
