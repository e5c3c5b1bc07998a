"""The table by which finemoe-plus' margin was chosen, and the grid it is judged by, against replays and formulas of their own."""

import numpy as np
import pandas as pd
import pytest

import finemoe
from finemoe.artifact.analysis import causal_grid
from finemoe.artifact.analysis.causal_grid import Part, grid_rows, overall, summary
from finemoe.artifact.analysis.margin import chosen, margin_table
from finemoe.simulation.synthetic import Recipe, synthetic_trace

TESTBED = "a100-80gb"


@pytest.fixture(scope="module")
def part() -> Part:
    trace = synthetic_trace(Recipe(0.2, 0.3, 0.4, 8), 32, 8, 2, num_requests=6, tokens_per_request=4)
    return Part("made up", trace.split("served"), trace.split("history"))


@pytest.fixture(scope="module")
def table(part) -> pd.DataFrame:
    return margin_table([part], (0.2, 0.6), [TESTBED])


def test_margins_are_replays(part, table):
    for row in table.itertuples():
        told = {"expert_memory": row.expert_memory, "hardware": TESTBED}
        mine = finemoe.replay(part.served, "finemoe-plus", history=part.history, least_gain=row.least_gain, **told)
        lru = finemoe.replay(part.served, "on-demand", eviction="lru", **told)
        assert row.over_lru == pytest.approx(mine.tpot_s / lru.tpot_s)
        moved = mine.demand_bytes + mine.prefetched_bytes
        assert row.over_lru_bytes == pytest.approx(moved / lru.demand_bytes)
        assert row.wasted_share == pytest.approx(mine.wasted_bytes / moved)
        paper = finemoe.replay(part.served, "finemoe", history=part.history, **told)
        expected = mine.wasted_bytes / paper.wasted_bytes if paper.wasted_bytes else np.nan
        assert row.waste_over_finemoe == pytest.approx(expected, nan_ok=True)


def test_margins_are_judged_by_geometric_means(table):
    for row in chosen(table).itertuples():
        mine = table[table.least_gain == row.least_gain]
        assert row.over_lru == pytest.approx(np.prod(mine.over_lru) ** (1 / len(mine)))
        assert row.worst == mine.over_lru.max()
        assert row.wasted_share == pytest.approx(mine.wasted_share.mean())


def test_a_cell_is_measured_by_the_best_of_all_others(part, monkeypatch):
    few = {name: causal_grid.OTHERS[name] for name in ("on-demand", "ProMoE", "FineMoE")}
    monkeypatch.setattr(causal_grid, "OTHERS", few)
    (rows,) = grid_rows(part, [TESTBED])
    cells = summary(rows)
    assert len(cells) == rows.expert_memory.nunique()
    for cell in cells.itertuples():
        here = rows[rows.expert_memory == cell.expert_memory]
        others = here[~here.system.isin(["finemoe-plus", "oracle"])]
        mine = here[here.system == "finemoe-plus"].tpot_s.item()
        assert cell.over_best == pytest.approx(mine / others.tpot_s.min())
        lru = here[(here.system == "on-demand") & (here.eviction == "lru")].tpot_s.item()
        oracle = here[here.system == "oracle"].tpot_s.item()
        assert cell.gap_closed == pytest.approx((lru - mine) / (lru - oracle))
    found = overall(cells)
    assert found["worst_over_best"] == cells.over_best.max()
    assert found["over_lru"] == pytest.approx(np.prod(cells.over_lru) ** (1 / len(cells)))
