"""The evidence for and against finemoe-plus in words (notebooks/studies/finemoe_plus.ipynb).

The picture is `analysis.finemoe_plus_figure`; each function below reads the same points, or the shipped tables behind them.
"""

from collections.abc import Iterator

import pandas as pd

from finemoe.artifact.analysis.causal_grid import summary
from finemoe.artifact.analysis.finemoe_plus_figure import BEST_RULE, DISTANCE, RULE, geometric_mean, workload_of
from finemoe.paths import ROOT

_SURE = 0.3  # probabilities from here on count as sure
_LITTLE = 0.05  # of the gap from LRU to Belady: less is no visible effect


def calibration_in_words(points: pd.DataFrame) -> Iterator[str]:
    """For each mode: mean error of the probabilities, and where it is largest among the sure ones."""
    for mode, part in points[points.panel == "calibration"].groupby("series", sort=False):
        by_quantity = {str(name): rows.set_index("probability").value for name, rows in part.groupby("quantity")}
        share, apart = by_quantity["share of all forecasts"], by_quantity["share demanded less probability said"]
        error, sure = by_quantity["expected calibration error"].iloc[0], apart[apart.index >= _SURE]
        worst = int(sure.abs().argmax())
        said, difference = float(sure.index[worst]), float(sure.iloc[worst])
        direction = "too sure" if difference < 0 else "not sure enough"
        yield (
            f"{mode}: off by {error:.4f} on average; {share[share.index < 0.1].sum():.0%} of all forecasts are below 0.1. From "
            f"{_SURE} on the largest error is at {said:.2f}, where {said + difference:.2f} came true: {direction} by "
            f"{abs(difference):.3f}."
        )


def recall_table(points: pd.DataFrame) -> pd.DataFrame:
    """Recall at K of every mode by distance in layers."""
    recalls = points[points.panel == "recall"]
    return recalls.pivot_table(index="series", columns="distance", values="value", sort=False)


def recall_in_words(points: pd.DataFrame) -> Iterator[str]:
    """The best other method three layers ahead, and every mode compared with it."""
    ahead, methods = recall_table(points), points[points.panel == "methods"].set_index("series")
    others = methods[methods.kind == "other method"]
    best = others.iloc[int(others.value.argmax())]
    interval = f"[{best.low:.3f}, {best.high:.3f}]"
    yield f"{DISTANCE} layers ahead the best of the other methods is {best.name}: {best.value:.3f} {interval}."
    for mode, row in methods[methods.kind == "mode"].iterrows():
        line, columns = ahead.loc[[str(mode)]].iloc[0], ahead.columns
        yield (
            f"{mode}: {row.value:.3f} [{row.low:.3f}, {row.high:.3f}], {row.value - best.value:+.3f} against it; from "
            f"{columns[0]:.0f} to {columns[-1]:.0f} layers ahead it loses {line.iloc[0] - line.iloc[-1]:.3f}."
        )
    frozen, adapting = methods.value["history, frozen"], methods.value["history, adapting"]
    yield f"Adapting to the running request adds {adapting - frozen:+.3f} to the frozen forecasts."


def eviction_table(points: pd.DataFrame) -> pd.DataFrame:
    """Share of the gap from LRU to Belady that is closed, by variant and expert memory."""
    evicting = points[points.panel == "eviction"]
    return evicting.pivot_table(index=["kind", "series"], columns="expert_memory", values="value", sort=False)


def eviction_in_words(points: pd.DataFrame) -> Iterator[str]:
    """For each memory size: the rule, the best other rule, the parts that matter most and least, and the best ceiling."""
    table, named = eviction_table(points), points[(points.panel == "eviction") & (points.series == BEST_RULE)]
    whole, ceilings = _of_kind(table, "rule").loc[[RULE]].iloc[0], _of_kind(table, "ceiling")
    for memory, best in zip(named.expert_memory, named.to_dict("records"), strict=True):
        lost = _lost(table)[memory].sort_values(ascending=False)
        yield (
            f"{memory:.1%} of the experts: {RULE} closes {whole[memory]:.0%} of the gap, the best other rule "
            f"({best['stands_for']}) {best['value']:.0%}. "
            f"Most is lost by '{lost.index[0]}' ({lost.iloc[0]:.0%} of the gap), "
            f"least by '{lost.index[-1]}' ({lost.iloc[-1]:.1%}). "
            f"The best informed ceiling closes {ceilings[memory].max():.0%}."
        )


def cells_of(causal_grid: str) -> pd.DataFrame:
    """TPOT ratios and bytes of every cell with its workload; a relative path starts at the repository root."""
    cells = summary(pd.read_csv(ROOT / causal_grid))
    return cells.assign(workload=workload_of(cells.trace))


def speed_in_words(cells: pd.DataFrame) -> Iterator[str]:
    """For each workload: geometric means of TPOT over that of other systems."""
    for workload, part in cells.groupby("workload", sort=False):
        by_trace = [geometric_mean(one.over_best) for _, one in part.groupby("trace")]
        between = f" ({min(by_trace):.3f} to {max(by_trace):.3f} from fold to fold)" if len(by_trace) > 1 else ""
        yield (
            f"{workload}, {len(part)} cells: {geometric_mean(part.over_lru):.3f} of on-demand LRU's TPOT, "
            f"{geometric_mean(part.over_promoe):.3f} of ProMoE's, {geometric_mean(part.over_finemoe):.3f} of FineMoE's, "
            f"{geometric_mean(part.over_best):.3f} of the fastest other's{between}."
        )


def folds_in_words(next_use: str) -> Iterator[str]:
    """The eviction rule on the folds that its constants were chosen on, and on the others."""
    table = pd.read_csv(ROOT / next_use)
    for memory, row in table[table.rule == RULE].set_index("expert_memory").iterrows():
        shares = f"{row.share_tuned:.1%} of the gap closed on the folds chosen on, {row.share_held_out:.1%} on the others"
        yield f"{memory:.2%} of the experts: {shares}."


def sizes_table(forecasts: str) -> pd.DataFrame:
    """What other sizes of networks and memory recall on a quarter of the requests, by distance."""
    table = pd.read_csv(ROOT / forecasts)
    quarter = table[table.variant.str.startswith("a quarter")]
    return quarter.pivot_table(index="variant", columns="distance", values="recall", sort=False)


def slower_in_words(points: pd.DataFrame) -> Iterator[str]:
    """Every comparison in which finemoe-plus takes longer than another system."""
    compared = points[points.panel == "tpot"]
    slower = compared[compared.value > 1].sort_values("value", ascending=False)
    yield f"Slower than the other system in {len(slower)} of {len(compared)} comparisons."
    for row in slower.to_dict("records"):
        other = row["stands_for"] if isinstance(row["stands_for"], str) else row["series"]
        place = f"{row['trace']} on {row['testbed']} at {row['expert_memory']:.1%}"
        yield f"  {place}: {row['value'] - 1:.2%} slower than {other}"


def costs_in_words(cells: pd.DataFrame) -> Iterator[str]:
    """For each workload: distance to the oracle, and bytes moved and wasted."""
    most = cells.expert_memory.max()
    for workload, part in cells.groupby("workload", sort=False):
        largest, wasteful = part[part.expert_memory == most].over_best, part.waste_over_finemoe.dropna()
        yield (
            f"{workload}: {1 - part.gap_closed.mean():.0%} of the way to the oracle is not covered. At {most:.0%} of the experts "
            f"it takes {geometric_mean(largest):.3f} of the fastest other's time. It moves more bytes than on-demand LRU in "
            f"{(part.bytes_over_lru > 1).sum()} of {len(part)} cells (mean ratio {part.bytes_over_lru.mean():.2f}). It wastes "
            f"more than FineMoE in {(wasteful > 1).sum()} of the {len(wasteful)} cells where FineMoE wastes any (mean ratio "
            f"{wasteful.mean():.2f}, largest {wasteful.max():.2f})."
        )


def little_in_words(points: pd.DataFrame) -> Iterator[str]:
    """What better forecasts could still add to the eviction rule, and which parts have no visible effect."""
    table = eviction_table(points)
    gains = _of_kind(table, "ceiling") - _of_kind(table, "rule").loc[[RULE]].iloc[0]
    ranges = "; ".join(f"{name} {row.min():+.1%} to {row.max():+.1%}" for name, row in gains.iterrows())
    yield f"What each ceiling adds to the rule, smallest and largest over memory sizes: {ranges}."
    largest = _lost(table).abs().max(axis=1)
    names = "; ".join(map(str, largest.index[largest < _LITTLE])) or "none"
    yield f"Parts whose change moves the share by less than {_LITTLE:.0%} at every size: {names}."


def _lost(table: pd.DataFrame) -> pd.DataFrame:
    """How much less of the gap is closed with a part left out or changed."""
    return -(_of_kind(table, "ablation") - _of_kind(table, "rule").loc[[RULE]].iloc[0])


def _of_kind(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of `eviction_table` of one kind, by series."""
    return table[table.index.get_level_values("kind") == kind].droplevel("kind")
