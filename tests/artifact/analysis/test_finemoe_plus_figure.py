"""The picture of finemoe-plus against its tables, counted again by plain loops, and with cells that are slower."""

import csv
import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from finemoe.artifact.analysis.finemoe_plus_figure import (
    BEST_RULE,
    COLUMNS,
    EVICTION_MEMORIES,
    MEMORY_ALONE,
    MODES,
    OVER,
    evidence_figure,
    figure_points,
    geometric_mean,
    tpot_points,
)
from finemoe.artifact.analysis.next_use import ABLATIONS, CEILINGS
from finemoe.paths import DATA

TABLES = {
    "forecasts": DATA / "reference" / "forecasts_gpt_oss.csv",
    "calibration": DATA / "reference" / "calibration_gpt_oss.csv",
    "recalls": DATA / "reference" / "recalls_gpt_oss.csv",
    "next_use": DATA / "reference" / "next_use_gpt_oss.csv",
    "causal_grid": DATA / "reference" / "causal_grid.csv",
}
CELL = ("trace", "testbed", "expert_memory")


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    return figure_points(TABLES)


@pytest.fixture(scope="module")
def figure(points):
    fig = evidence_figure(points)
    fig.canvas.draw()
    yield fig
    plt.close(fig)


def rows_of(name: str, **wanted) -> list[dict[str, str]]:
    with TABLES[name].open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[column] == value for column, value in wanted.items())]


def ratios_by_hand(cells: list[dict[str, str]]) -> dict[tuple[str, ...], dict[str, float]]:
    """TPOT of finemoe-plus over the others' in each cell."""
    tpot: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for row in cells:
        tpot.setdefault(tuple(row[name] for name in CELL), {})[row["system"], row["eviction"]] = float(row["tpot_s"])
    found = {}
    for cell, of in tpot.items():
        ours = of["finemoe-plus", "own"]
        fastest = min(seconds for (system, _), seconds in of.items() if system not in ("finemoe-plus", "oracle"))
        theirs = [of["on-demand", "lru"], of["ProMoE", "own"], of["FineMoE", "own"], fastest]
        found[cell] = {name: ours / seconds for name, seconds in zip(OVER.values(), theirs, strict=True)}
    return found


def drawn(axis) -> list[tuple[float, float]]:
    """Every marker of an axis."""
    lines = [line for line in axis.get_lines() if line.get_marker() not in ("None", "", "|", "_", None)]
    return [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def axes_labelled(fig, text: str) -> list:
    return [axis for axis in fig.axes if text in (axis.get_xlabel(), axis.get_ylabel())]


def test_every_point_has_a_source_a_unit_and_a_value(points):
    assert list(points) == COLUMNS
    assert points[["panel", "source", "quantity", "unit", "kind", "series", "value"]].notna().all(axis=None)
    assert set(points.source) == {path.name for path in TABLES.values()}
    assert (points.low.isna() | points.low.le(points.value)).all()
    assert (points.high.isna() | points.high.ge(points.value)).all()


@pytest.mark.parametrize(("mode", "name"), MODES.items())
def test_calibration_error_is_that_of_the_bins(points, mode, name):
    bins = rows_of("calibration", setting=mode[0], variant=mode[1], distance="3")
    count = sum(int(row["forecasts"]) for row in bins)
    expected = sum(int(row["forecasts"]) * abs(float(row["demanded"]) - float(row["probability"])) for row in bins) / count
    mine = points[(points.panel == "calibration") & (points.series == name)].set_index("quantity")
    assert mine.value["expected calibration error"] == pytest.approx(expected, rel=1e-3)
    share, apart = mine.value["share of all forecasts"], mine.value["share demanded less probability said"]
    assert sum(share) == pytest.approx(1)
    assert sum(a * abs(b) for a, b in zip(share, apart, strict=True)) == pytest.approx(expected, rel=1e-3)


def test_recall_is_what_the_tables_say(points):
    for mode, name in MODES.items():
        said = {row["distance"]: row for row in rows_of("forecasts", setting=mode[0], variant=mode[1], fold="all")}
        mine = points[(points.panel == "recall") & (points.series == name)]
        assert len(mine) == len(said)
        for row in mine.itertuples():
            values = [float(said[f"{row.distance:.0f}"][column]) for column in ("recall", "low", "high")]
            assert [row.value, row.low, row.high] == values
    compared = points[(points.panel == "methods") & (points.kind == "other method")]
    assert dict(zip(compared.series, compared.value, strict=True)) == {
        row["method"]: float(row["recall"]) for row in rows_of("recalls")
    }
    (alone,) = rows_of("forecasts", setting=MEMORY_ALONE[0], variant=MEMORY_ALONE[1], distance="3")
    assert list(points.value[points.kind == "part"]) == [float(alone["recall"])]


def test_every_part_and_ceiling_of_the_rule_is_there_at_every_size(points):
    mine = points[points.panel == "eviction"].set_index(["series", "expert_memory"])
    assert set(mine.index) == {(name, m) for name in ("next-use", BEST_RULE, *ABLATIONS, *CEILINGS) for m in EVICTION_MEMORIES}
    table = {(row["rule"], float(row["expert_memory"])): row for row in rows_of("next_use")}
    for (series, memory), row in mine.iterrows():
        rule = row.stands_for if series == BEST_RULE else series
        assert [row.value, row.low, row.high] == [float(table[rule, memory][c]) for c in ("share", "share_low", "share_high")]
    for memory in EVICTION_MEMORIES:
        others = [row for row in rows_of("next_use", kind="rule") if row["rule"] not in ("next-use", "belady")]
        best = max(float(row["share"]) for row in others if float(row["expert_memory"]) == memory)
        assert mine.value[BEST_RULE, memory] == best


def test_ratios_of_tpot_are_those_of_the_grid(points):
    expected = ratios_by_hand(rows_of("causal_grid"))
    mine = points[points.panel == "tpot"]
    assert len(mine) == len(expected) * len(OVER)
    for row in mine.itertuples():
        assert row.value == pytest.approx(expected[row.trace, row.testbed, f"{row.expert_memory:g}"][row.series])
    for over in OVER.values():
        ratios = [cell[over] for cell in expected.values()]
        by_product = math.prod(ratios) ** (1 / len(ratios))
        assert geometric_mean(mine.value[mine.series == over]) == pytest.approx(by_product)


def test_what_is_drawn_is_what_the_table_holds(points, figure):
    (above,) = axes_labelled(figure, "share demanded")
    said = points[points.quantity == "share demanded"]
    assert sorted(drawn(above)) == sorted(zip(said.probability, said.value, strict=True))
    (ahead,) = axes_labelled(figure, "layers ahead")
    recalls = points[points.panel == "recall"]
    assert sorted(drawn(ahead)) == sorted(zip(recalls.distance, recalls.value, strict=True))
    shares = sorted(x for axis in axes_labelled(figure, "share of the gap closed") for x, _ in drawn(axis))
    assert shares == sorted(points.value[points.panel == "eviction"])
    ratios = sorted(y for axis in axes_labelled(figure, "experts in the cache (%)") for _, y in drawn(axis))
    assert ratios == sorted(points.value[points.panel == "tpot"])


def test_a_slower_cell_stands_out_wherever_it_is(points):
    """One cell of each workload takes a thousand times as long; a workload that the picture has never seen is drawn, too."""
    grid = pd.read_csv(TABLES["causal_grid"])
    first = grid[grid.trace == grid.trace.iloc[0]]
    grid = pd.concat([grid, first.assign(trace="some-model-questions")], ignore_index=True)
    ours = grid[grid.system == "finemoe-plus"]
    workloads = ours.trace.str.partition(",")[0].where(~ours.trace.str.contains("-mini-"), "miniatures")
    grid.loc[ours[~workloads.duplicated()].index, "tpot_s"] *= 1e3
    changed = pd.concat([points[points.panel != "tpot"], tpot_points(grid)], ignore_index=True)
    fig = evidence_figure(changed)
    fig.canvas.draw()
    slower = changed[(changed.panel == "tpot") & (changed.value > 1)]
    assert len(slower) >= workloads.nunique() * len(OVER)
    panels = axes_labelled(fig, "experts in the cache (%)")
    assert len(panels) == workloads.nunique() * len(OVER)
    large = [line for axis in panels for line in axis.get_lines() if line.get_markersize() > 5 and line.get_marker() != "None"]
    assert sorted(float(y) for line in large for y in line.get_ydata()) == sorted(slower.value)
    said = [int(axis.get_title().rpartition("slower in ")[2].split()[0]) for axis in panels]
    assert sum(said) == len(slower)
    assert all(axis.get_ylim()[1] > 1 for axis in panels)
    plt.close(fig)
