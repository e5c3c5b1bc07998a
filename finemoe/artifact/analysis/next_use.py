"""How much each part of the eviction rule next-use contributes on real routing, and how far the rule is from what could be known.

On-demand loading with one cache over all requests, cold at the start. A rule's share of the gap is how far it gets from LRU to
Belady, which knows the future. Ablations leave out one part of the rule. Ceilings know part of the future and judge the rest as
the rule does. `python -m finemoe.artifact.analysis.next_use` writes the table for the public gpt-oss-20b trace. The rule's
constants were tuned on the requests that `is_tuned` selects.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from finemoe.artifact.plotting import save_table
from finemoe.cache import state
from finemoe.cache.rules import naming, next_use
from finemoe.cache.rules.base import EvictionRule
from finemoe.cache.rules.next_use import DISCOUNT, FREQUENCY, LATER, layers_until, nearness, probability, rows_with_tables
from finemoe.cache.state import TIME, Statistics
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.intervals import bootstrap_ratio
from finemoe.paths import DATA
from finemoe.report import Report
from finemoe.simulation.replay import sweep
from finemoe.stale_kernels import forget_stale_kernels
from finemoe.traces import RoutingTrace

forget_stale_kernels(__file__, next_use.__file__, state.__file__)
EXPERT_MEMORIES = [0.0625, 0.125, 0.25, 0.5, 0.75]
PUBLISHED = ("lru", "lfu", "lfu-aged", "lfru", "least-stale", "least-stale-interval", "next-use", "belady")
_NEAR = 3  # layers
_RECALL, _FALSE_ALARMS = 0.7, 0.3 * 4 / 28  # if 4 of 32 experts are named, as many as are used


def is_tuned(requests: np.ndarray) -> np.ndarray:
    """Whether each request belongs to the two of five folds used for tuning, by request number."""
    return requests % 5 < 2


def _weigh_coming_turn(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Uses after the coming turn have no value."""
    for place in range(len(experts)):
        worth[place] = probability(stats, experts[place]) * nearness(stats, experts[place])


def _weigh_frequent_later(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """After the coming turn, an expert is used at its recent frequency."""
    for place in range(len(experts)):
        flat = experts[place]
        coming, often = probability(stats, flat), stats.own[FREQUENCY, flat]
        value = coming + (1.0 - coming) * DISCOUNT * often / (1.0 - DISCOUNT * (1.0 - often))
        worth[place] = value * nearness(stats, flat)


def _weigh_anywhere(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """All layers are equally near."""
    for place in range(len(experts)):
        coming = probability(stats, experts[place])
        worth[place] = coming + (1.0 - coming) * DISCOUNT * stats.own[LATER, experts[place]]


def _weigh_expected_layers(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """Layers until the next use, assuming that every turn uses the expert with the coming turn's probability."""
    for place in range(len(experts)):
        turns = 1.0 / probability(stats, experts[place]) - 1.0
        worth[place] = -(layers_until(stats, experts[place]) + len(stats.turns) * turns)


def _weigh_expected_layers_by_frequency(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
    """The same, with the decayed frequency as probability."""
    for place in range(len(experts)):
        turns = 1.0 / max(stats.own[FREQUENCY, experts[place]], 1e-9) - 1.0
        worth[place] = -(layers_until(stats, experts[place]) + len(stats.turns) * turns)


def _weigh_foreseen(reach: int, recall: float, false_alarms: float) -> Callable[[Statistics, np.ndarray, np.ndarray], None]:
    """The value of an expert given a hint that names the experts used by the next `reach` layers: this share of them, and by
    mistake that share of the others, at random. The hint is combined with the rule's own forecast by Bayes' rule."""

    def weigh(stats: Statistics, experts: np.ndarray, worth: np.ndarray) -> None:
        for place in range(len(experts)):
            flat = experts[place]
            until, coming = layers_until(stats, flat), probability(stats, flat)
            if until < reach:
                is_used = stats.next_use[flat] == stats.clock[TIME] + until
                draw = (flat * 7919 + stats.turns[stats.layer_of[flat]] * 104729 + 12345) % 2147483647
                for _ in range(3):
                    draw = draw * 48271 % 2147483647
                is_named = draw / 2147483647.0 < (recall if is_used else false_alarms)
                if_used = recall if is_named else 1.0 - recall
                if_not = false_alarms if is_named else 1.0 - false_alarms
                coming = coming * if_used / (coming * if_used + (1.0 - coming) * if_not)
            value = coming + (1.0 - coming) * DISCOUNT * stats.own[LATER, flat]
            worth[place] = value * nearness(stats, flat)

    return weigh


def _with_tables(num_tables: int) -> EvictionRule:
    return EvictionRule(next_use.weigh, next_use.visit, functools.partial(rows_with_tables, num_tables))


def _judging(weigh: Callable[[Statistics, np.ndarray, np.ndarray], None], needs_future: bool = False) -> EvictionRule:
    return EvictionRule(weigh, next_use.visit, next_use.own, needs_future)


_ALL_LAYERS = 1 << 30
ABLATIONS = {
    "no tables, frequencies only": _with_tables(0),
    "tables of the own layer only": _with_tables(2),
    "half as many tables": _with_tables(8),
    "twice as many tables": _with_tables(32),
    "nothing after the coming turn": _judging(_weigh_coming_turn),
    "later turns by frequency": _judging(_weigh_frequent_later),
    "all layers equally near": _judging(_weigh_anywhere),
    "expected layers by p": _judging(_weigh_expected_layers),
    "expected layers by frequency": _judging(_weigh_expected_layers_by_frequency),
}
CEILINGS = {
    "three layers ahead, 70 % known": _judging(_weigh_foreseen(_NEAR, _RECALL, _FALSE_ALARMS), needs_future=True),
    "three layers ahead known": _judging(_weigh_foreseen(_NEAR, 1.0, 0.0), needs_future=True),
    "the coming turn of every layer, 70 % known": _judging(
        _weigh_foreseen(_ALL_LAYERS, _RECALL, _FALSE_ALARMS), needs_future=True
    ),
    "the coming turn of every layer known": _judging(_weigh_foreseen(_ALL_LAYERS, 1.0, 0.0), needs_future=True),
}


def next_use_table(trace: RoutingTrace, expert_memories: Sequence[float] = EXPERT_MEMORIES, seed: int = 0) -> pd.DataFrame:
    """Every rule at every memory size.

    Args:
        trace: the routing to replay.
        expert_memories: shares of all routed experts.
        seed: of the intervals.
    Returns:
        Rows (rule, kind, expert_memory, hit_rate, low, high, share, share_low, share_high, share_tuned, share_held_out); share is
        the share of the gap from LRU to Belady, with paired intervals over requests.
    """
    kinds = dict.fromkeys(PUBLISHED, "rule") | dict.fromkeys(ABLATIONS, "ablation") | dict.fromkeys(CEILINGS, "ceiling")
    with naming(ABLATIONS | CEILINGS):
        reports = {rule: sweep(trace, "on-demand", expert_memories, [rule]) for rule in kinds}
    rows = []
    for rule, found in reports.items():
        for memory, report, floor, ceiling in zip(expert_memories, found, reports["lru"], reports["belady"], strict=True):
            figures = _figures(report, floor, ceiling, seed)
            rows.append({"rule": rule, "kind": kinds[rule], "expert_memory": memory, **figures})
    return pd.DataFrame(rows)


def _figures(report: Report, floor: Report, ceiling: Report, seed: int) -> dict[str, Any]:
    hits, accesses = _hits(report), np.array([request.accesses for request in report.requests])
    gains, gaps = hits - _hits(floor), _hits(ceiling) - _hits(floor)
    hit_rate, share = bootstrap_ratio(hits, accesses, seed=seed), bootstrap_ratio(gains, gaps, seed=seed)
    chosen = is_tuned(np.arange(len(hits)))
    return {
        **{"hit_rate": hit_rate.value, "low": hit_rate.low, "high": hit_rate.high},
        **{"share": share.value, "share_low": share.low, "share_high": share.high},
        **{"share_tuned": _share(gains[chosen], gaps[chosen]), "share_held_out": _share(gains[~chosen], gaps[~chosen])},
    }


def _share(gains: np.ndarray, gaps: np.ndarray) -> float:
    return float(gains.sum() / gaps.sum()) if gaps.sum() else float("nan")


def _hits(report: Report) -> np.ndarray:
    return np.array([request.hits for request in report.requests])


def write_table(
    trace: Annotated[Path | None, typer.Argument(help="decode_traces.npz; default: next to the checkout")] = None,
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "next_use_gpt_oss.csv",
) -> None:
    """Replay the public gpt-oss-20b trace under every rule and write the hit rates as CSV."""
    table = next_use_table(load_gpt_oss(trace or sample_path()))
    save_table(table, output)
    typer.echo(table.to_string(index=False))


if __name__ == "__main__":
    typer.run(write_table)
