"""Numbers and tables of docs/finemoe_plus.md: forecasts, the eviction rule, and times on described testbeds."""

from collections.abc import Iterator
from functools import cache
from itertools import chain

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.causal_grid import overall, summary
from finemoe.artifact.analysis.finemoe_plus_figure import workload_of
from finemoe.artifact.docs.tables import Number, groups, only, percent, rows, shipped, slug
from finemoe.artifact.markdown import pipe_table

_FORECASTS = "reference/forecasts_gpt_oss.csv"
_CALIBRATION = "reference/calibration_gpt_oss.csv"
_RULE = "reference/next_use_gpt_oss.csv"
_GRID = "reference/causal_grid.csv"
_MARGIN = "reference/margin_gpt_oss.csv"
_MODES = {
    "with a history (five folds, one pass), adapting within a request": ("history", "adapts to each request"),
    "the same, strictly frozen": ("history", "frozen"),
    "online, without a history, second half of the requests": ("online", "all requests"),
    "the request's own memory alone (a quarter of the requests)": ("online", "a quarter of the requests: memory alone"),
}
_OVER = {
    "on-demand, LRU": ("over_lru", 0.7),
    "ProMoE": ("over_promoe", 0.85),
    "FineMoE": ("over_finemoe", 0.65),
    "the fastest other causal system of the cell, under any rule": ("over_best", None),
    "the worst cell over that system": ("worst_over_best", 1.01),
    "share of the gap from on-demand LRU to the oracle that is closed": ("gap_closed", 0.5),
    "bytes moved, over on-demand LRU's": ("bytes_over_lru", 1.05),
    "bytes wasted, over FineMoE's": ("waste_over_finemoe", 0.33),
}
_ABLATIONS = {
    "no_tables": "no tables, frequencies only",
    "own_layer": "tables of the own layer only",
    "coming_turn": "nothing after the coming turn",
    "layers_alike": "all layers equally near",
    "expected_turns": "expected layers by p",
}


def plus_numbers() -> Iterator[Number]:
    """Numbers in sentences."""
    return chain(_forecast_numbers(), _rule_numbers(), _grid_numbers(), _margin_numbers())


def plus_blocks() -> dict[str, str]:
    """The page's tables, by the name of their marks."""
    return {"recalls": _recalls(), "rule": _rule(), "testbeds": _testbeds()}


def _recalls() -> str:
    """Recall at K by mode and distance, with the interval three layers ahead."""
    table = shipped(_FORECASTS)
    rows = []
    for name, (setting, variant) in _MODES.items():
        part = table[(table.setting == setting) & (table.variant == variant) & (table.fold == "all")].set_index("distance")
        three = f"{part.recall[3]:.3f} [{part.low[3]:.3f}, {part.high[3]:.3f}]"
        cells = {"1 layer ahead": f"{part.recall[1]:.3f}", "3 layers": three, "8 layers": f"{part.recall[8]:.3f}"}
        rows.append({"mode": name, **cells})
    other = shipped("reference/recalls_gpt_oss.csv").set_index("method").recall
    for name in ("nearest of 1,000 maps", "32 nearest of 32,000, weighted"):
        rows.append({"mode": f"for comparison: {name}", "1 layer ahead": "", "3 layers": f"{other[name]:.3f}", "8 layers": ""})
    return pipe_table(pd.DataFrame(rows)) + "\n"


def _rule() -> str:
    """Demand hits on a cold cache, and how much of the way from LRU to Belady's rule next-use closes."""
    table = shipped(_RULE)
    hits = table.pivot(index="expert_memory", columns="rule", values="hit_rate")
    shares = table.pivot(index="expert_memory", columns="rule", values="share")
    named = {"LRU": "lru", "lfu-aged": "lfu-aged", "next-use": "next-use", "Belady": "belady"}
    shown = pd.DataFrame({"expert memory": [f"{100 * memory:g} %" for memory in hits.index]})
    for title, name in named.items():
        shown[title] = [f"{value:.3f}" for value in hits[name]]
    shown["gap closed"] = [percent(value) for value in shares["next-use"]]
    shown["if each layer's next turn were known"] = [percent(value) for value in shares["the coming turn of every layer known"]]
    return pipe_table(shown) + "\n"


def _testbeds() -> str:
    """TPOT over other systems' (geometric means over cells), and means of the rest, by workload."""
    cells = _cells()
    parts = {"gpt-oss": "gpt-oss-20b", "gemma": "gemma-4-26b", "miniatures": None, "all": ""}
    columns = {}
    for title, workload in parts.items():
        is_mini = ~cells.workload.isin(["gpt-oss-20b", "gemma-4-26b"])
        part = cells if workload == "" else cells[is_mini] if workload is None else cells[cells.workload == workload]
        columns[f"{title}, {len(part)} cells"] = overall(part)
    rows = []
    for title, (name, aim) in _OVER.items():
        one = percent if name == "gap_closed" else "{:.3f}".format
        values = {column: one(found[name]) for column, found in columns.items()}
        rows.append({"over": title, **values, "aim": "" if aim is None else percent(aim) if name == "gap_closed" else f"{aim:g}"})
    return pipe_table(pd.DataFrame(rows)) + "\n"


@cache
def _cells() -> pd.DataFrame:
    cells = summary(shipped(_GRID))
    return cells.assign(workload=workload_of(cells.trace))


def _forecast_numbers() -> Iterator[Number]:
    table = shipped(_FORECASTS)
    whole = table[table.fold == "all"]
    for one in rows(whole):
        name = f"plus_recall_{slug(one.setting)}_{slug(one.variant)}_{one.distance}"
        meaning = f"recall of finemoe-plus's forecasts, {one.setting}, {one.variant}, {one.distance} layers ahead"
        yield Number(name, f"{one.recall:.3f}", _FORECASTS, meaning)
    three = whole[whole.distance == 3].set_index("variant").recall
    quarter = "a quarter of the requests: "
    full = three[f"{quarter}128 units a network"]
    changes = {
        "256_units": "256 units a network",
        "16_units": "16 units a network",
        "16_tokens": "128 units, 16 tokens remembered",
    }
    for name, variant in changes.items():
        change = abs(three[quarter + variant] - full)
        yield Number(f"plus_change_{name}", f"{change:.3f}", _FORECASTS, f"change of recall, {variant} instead of 128 units")
    gained = three["adapts to each request"] - three["frozen"]
    yield Number("plus_adapting", f"{gained:.3f}", _FORECASTS, "recall that adapting within a request adds, 3 layers ahead")
    calibration = shipped(_CALIBRATION)
    for (setting, variant), part in groups(calibration[calibration.distance == 3], "setting", "variant"):
        name = f"{slug(setting)}_{slug(variant)}"
        yield Number(
            f"plus_ece_{name}", f"{part.ece.iloc[0]:.3f}", _CALIBRATION, f"expected calibration error, {setting}, {variant}"
        )
        sure = part[part.probability >= 0.3]
        gap = (sure.demanded - sure.probability).abs().max()
        yield Number(f"plus_gap_{name}", f"{gap:.2f}", _CALIBRATION, "greatest gap of a bin from a probability of 0.3")


def _rule_numbers() -> Iterator[Number]:
    table = shipped(_RULE)
    for name, variant in _ABLATIONS.items():
        for memory in (0.125, 0.25, 0.5):
            share = only(table, "share", rule=variant, expert_memory=memory)
            meaning = f"gap closed by next-use, {variant}, at {100 * memory:g} %"
            yield Number(f"plus_rule_{name}_{1000 * memory:g}", percent(share), _RULE, meaning)


def _grid_numbers() -> Iterator[Number]:
    cells = _cells()
    yield Number("plus_cells", str(len(cells)), _GRID, "cells of trace, testbed and memory with finemoe-plus")
    yield Number(
        "plus_cells_slower", str(int((cells.over_best > 1).sum())), _GRID, "cells in which another causal system is faster"
    )
    yield Number("plus_worst", percent(cells.over_best.max() - 1, 1), _GRID, "by how much at worst")
    for workload, part in chain([("all", cells)], groups(cells, "workload")):
        short = "miniatures" if workload.startswith("three") else slug(workload)
        for name, value in overall(part).items():
            text = percent(value) if name == "gap_closed" else f"{value:.3f}"
            yield Number(f"plus_{name}_{short}", text, _GRID, f"finemoe-plus, {name.replace('_', ' ')}, {workload}")
    real = cells[cells.workload == "gpt-oss-20b"]
    for links, is_six in (("one_link", False), ("six_links", True)):
        part = real[(real.testbed == "6x-rtx3090") == is_six]
        for memory, some in groups(part, "expert_memory"):
            ratio = overall(some)["over_lru"]
            meaning = f"finemoe-plus's TPOT over on-demand LRU's, gpt-oss-20b, {links.replace('_', ' ')}"
            yield Number(f"plus_{links}_{1000 * memory:g}", f"{ratio:.2f}", _GRID, meaning)


def _margin_numbers() -> Iterator[Number]:
    for gain, part in shipped(_MARGIN).astype({"least_gain": str}).groupby("least_gain"):
        name, ratio = f"{100 * float(str(gain)):.0f}", np.exp(np.log(part.over_lru).mean())
        yield Number(f"plus_margin_tpot_{name}", f"{ratio:.3f}", _MARGIN, f"TPOT over LRU's with a margin of {gain} loads")
        waste = f"{part.waste_over_finemoe.mean():.2f}"
        yield Number(f"plus_margin_waste_{name}", waste, _MARGIN, f"bytes wasted over FineMoE's with a margin of {gain} loads")
