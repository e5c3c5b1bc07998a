"""The claim on eviction rules: Fig. 14b."""

from typing import Any

import pandas as pd

from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.kinds import REAL, entries_of

_PREFETCHING = "prefetching"


def eviction_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Whether the interval of each rule is above that of the rule before it, with FineMoE's prefetches.

    Args:
        table: rows (model, dataset, rule, loading, hit_rate, low, high).
    Returns:
        By model and dataset: lfu_above_lru, finemoe_above_lfu, finemoe_minus_lfu, best_causal (the best rule that does not know
        the future), and the hit rate of every rule.
    """
    points = table[table.loading == _PREFETCHING].set_index(["model", "dataset", "rule"])
    hits, low, high = (points[column].unstack("rule") for column in ("hit_rate", "low", "high"))
    tests = {
        "lfu_above_lru": low["lfu"] > high["lru"],
        "finemoe_above_lfu": low["finemoe"] > high["lfu"],
        "finemoe_minus_lfu": hits["finemoe"] - hits["lfu"],
        "best_causal": hits.drop(columns="belady").idxmax(axis=1),
    }
    return pd.concat([pd.DataFrame(tests), hits], axis=1)


def eviction_claim(tests: pd.DataFrame) -> Claim:
    """LRU < LFU < FineMoE, with FineMoE's prefetches.

    Args:
        tests: as `eviction_tests` returns them, real routing among them.
    """
    holds, real = tests.lfu_above_lru & tests.finemoe_above_lfu, tests.loc[REAL].iloc[0]
    return Claim.judged(
        [
            Statement.of(text, name, flags)
            for text, test in {"FineMoE's rule above LFU": tests.finemoe_above_lfu, "LFU above LRU": tests.lfu_above_lru}.items()
            for name, flags in (("miniatures", test.drop(index=REAL, level="model")), (REAL, test.loc[[REAL]]))
        ],
        id="F14b",
        artefact="Fig. 14b",
        claim="Evicting by FineMoE's rule hits more than LFU, and LFU more than LRU",
        reported="LRU < LFU < FineMoE; no number",
        reproduced="; ".join(
            f"{model}/{dataset} {_values(row)}, Belady {row.belady:.2f}" for (model, dataset), row in entries_of(tests)
        ),
        panel="gpt-oss-20b (real routing) and miniatures, separately",
        executor="replayed",
        why=f"With FineMoE's prefetches the order holds, intervals apart, in {int(holds.sum())} of {len(holds)} panels (LFU "
        f"above LRU in {int(tests.lfu_above_lru.sum())}, FineMoE above LFU in {int(tests.finemoe_above_lfu.sum())}). On real "
        f"routing it is {_values(real)}; the best causal rule there is {real.best_causal} ({real[real.best_causal]:.2f}), "
        f"Belady {real.belady:.2f}.",
    )


def _values(hits: Any) -> str:
    return f"LRU {hits.lru:.2f}, LFU {hits.lfu:.2f}, FineMoE {hits.finemoe:.2f}"
