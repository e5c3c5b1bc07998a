"""The claim on what each part of the prediction is worth: Fig. 14a."""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import FLOOR
from finemoe.artifact.verdicts.kinds import REAL

FULL, COUNTS, TRAJECTORY, SEMANTIC = "Map (T+S+δ)", "Hit count", "Map (T)", "Map (T+S)"
_OTHERS = ("Speculate", "Learn", TRAJECTORY, SEMANTIC, FULL)
_LEAST_RISE = 0.001  # of the hit rate: less is no trend that a plot could show


def step_tests(steps: pd.DataFrame) -> pd.DataFrame:
    """Whether each step raises the hit rate.

    Args:
        steps: rows (model, dataset, step, value, low, high), what a step adds, paired over requests.
    Returns:
        The same with rises: the whole interval is above 0.001.
    """
    return steps.assign(rises=steps.low > _LEAST_RISE)


def worst_tests(table: pd.DataFrame) -> "pd.Series[bool]":
    """By model and dataset: whether hit counts hit less than every other predictor that was tested.

    Args:
        table: rows (model, dataset, system, hit_rate).
    """
    hits = _hit_rates(table)
    is_worst: pd.Series[bool] = hits[COUNTS] < hits[[name for name in _OTHERS if name in hits]].min(axis=1)
    return is_worst.rename("hit counts worst")


def ablation_claim(table: pd.DataFrame, steps: pd.DataFrame) -> Claim:
    """Hit rate rises from Map (T) over Map (T+S) to Map (T+S+δ); hit counts are worst.

    Args:
        table: rows (model, dataset, system, hit_rate), real routing among them. steps: as `step_tests` returns them.
    """
    hits, is_worst = _hit_rates(table), worst_tests(table)
    mini, worst, real = hits.drop(index=REAL, level=0), is_worst.drop(index=REAL, level=0), hits.loc[REAL].iloc[0]
    semantic, delta = (steps[steps.step == step] for step in ("semantic", "δ"))
    return Claim.judged(
        [
            Statement.of("semantic search adds", "miniatures", semantic.rises),
            Statement.of("δ adds", "miniatures", delta.rises),
            Statement.of("hit counts the worst", "miniatures", worst),
            Statement.of("hit counts the worst", REAL, is_worst.loc[[REAL]]),
        ],
        id="F14a",
        artefact="Fig. 14a",
        claim="Hit rate rises from Map (T) over Map (T+S) to Map (T+S+δ); hit counts are worst",
        reported="rising in the last three, hit count worst; no number",
        reproduced="; ".join(f"{model}/{dataset} {_values(mini.loc[model, dataset])}" for model, dataset in mini.index)
        + f"; {REAL} count {real[COUNTS]:.2f}, T {real[TRAJECTORY]:.2f}, LRU on demand {real[FLOOR]:.2f}",
        panel="miniatures; gpt-oss-20b (real routing) for hit count against Map (T), which is all that its trace can test",
        executor="replayed",
        why=f"On the miniatures semantic search adds in {int(semantic.rises.sum())} of {len(semantic)} panels "
        f"({semantic.value.min():+.3f} to {semantic.value.max():+.3f}), δ in {int(delta.rises.sum())} "
        f"({delta.value.min():+.4f} to {delta.value.max():+.4f}); hit counts are the worst predictor in {int(worst.sum())} of "
        f"{len(worst)}; Map (T+S+δ) is above on-demand LRU in {int((mini[FULL] > mini[FLOOR]).sum())}. On real routing, at its "
        f"own eviction rule, Map (T) gives {real[TRAJECTORY]:.2f} against {real[COUNTS]:.2f} for hit counts and "
        f"{real[FLOOR]:.2f} for LRU on demand: there the trend does not hold.",
    )


def _hit_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Of every system in a column, by model and dataset."""
    return table.pivot_table(index=["model", "dataset"], columns="system", values="hit_rate", sort=False)


def _values(hits: "pd.Series[float]") -> str:
    return f"count {hits[COUNTS]:.2f}, T {hits[TRAJECTORY]:.2f}, T+S {hits[SEMANTIC]:.2f}, T+S+δ {hits[FULL]:.2f}"
