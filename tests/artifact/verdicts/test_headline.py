"""The headline's claim, on made-up gains and on the shipped tables."""

import pytest

from finemoe.artifact.verdicts.gains import REPORTED_GAINS
from finemoe.artifact.verdicts.headline import headline_claim, headline_table
from tests.artifact.verdicts.made_up import gains
from tests.artifact.verdicts.shipped import figure_table, outcome, real_requests, shipped_claim, shipped_gains


def test_gains_above_both_reported_means_hold():
    assert headline_claim(gains()).verdict == "holds"


def test_one_panel_below_does_not_hold():
    short = headline_claim(gains(ProMoE=0.1))  # by two of eight cuts on one of two panels
    assert (short.verdict, short.reproduced.split(";")[0]) == (
        "does not hold",
        "decided by latency better by 47% at least: 0 of 1 (gpt-oss-20b)",
    )


@pytest.mark.parametrize(("gain", "verdict"), [(0.4701, "holds"), (0.4699, "does not hold")])
def test_the_border_is_the_reported_mean(gain, verdict):
    assert headline_claim(gains(gain)).verdict == verdict


def test_the_table_has_the_papers_gains_and_both_panels():
    table = headline_table(gains()).set_index(["panel", "gain of"]).share
    assert table["the paper", "latency, mean"] == 0.47
    assert table["the paper", "TPOT over ProMoE"] == REPORTED_GAINS["tpot_s"]["ProMoE"]
    assert table["miniatures"].tolist() == pytest.approx([0.5] * 13)


def test_the_headline_is_the_shipped_claim():
    found = shipped_gains(figure_table("f10"), real_requests(testbed="6x-rtx3090", expert_memory=0.25))
    assert outcome(headline_claim(found)) == shipped_claim("H")
    table, shipped = headline_table(found), figure_table("headline")
    assert table[["gain of", "panel"]].equals(shipped[["gain of", "panel"]])
    assert table.share.tolist() == pytest.approx(shipped.share.tolist(), rel=2e-4)
