"""The table of the rule next-use: its shape, what must be so of any trace, and the shipped figures."""

import pandas as pd
import pytest

from finemoe.artifact.analysis.next_use import ABLATIONS, CEILINGS, EXPERT_MEMORIES, PUBLISHED, next_use_table
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.paths import DATA
from finemoe.simulation.replay import sweep
from tests.simulation.test_golden import SERVED

SHIPPED = pd.read_csv(DATA / "reference" / "next_use_gpt_oss.csv").set_index(["rule", "expert_memory"])


@pytest.mark.timeout(300)
def test_every_rule_is_between_nothing_and_belady():
    table = next_use_table(SERVED, [0.375]).set_index("rule")
    assert list(table.index) == [*PUBLISHED, *ABLATIONS, *CEILINGS]
    assert (table.share["lru"], table.share["belady"]) == (0, 1)
    assert table.hit_rate.between(0, table.hit_rate["belady"]).all()
    assert set(table.kind) == {"rule", "ablation", "ceiling"}


def test_the_shipped_table_is_complete_and_meets_the_bar():
    assert set(SHIPPED.index) == {(rule, m) for rule in (*PUBLISHED, *ABLATIONS, *CEILINGS) for m in EXPERT_MEMORIES}
    found = SHIPPED.loc["next-use"]
    assert (found.loc[[0.125, 0.25, 0.5], ["share", "share_tuned", "share_held_out"]] >= 0.45).all(axis=None)


@pytest.mark.slow
@pytest.mark.skipif(not sample_path().is_file(), reason="the public gpt-oss-20b sample is not beside the checkout")
@pytest.mark.timeout(300)
def test_the_shipped_figures_are_found_again():
    (report,) = sweep(load_gpt_oss(sample_path()), "on-demand", [0.125], ["next-use"])
    assert report.hit_rate == pytest.approx(SHIPPED.hit_rate["next-use", 0.125], abs=1e-4)
