"""Where a result contradicts the paper: the assumption that causes it. Each is varied alone; the rest stays as in Fig. 10.

On real routing FineMoE does not beat ProMoE (F10, F12, H). The varied assumptions are the store's capacity, the eviction rule,
the number of requests that ProMoE's predictors are trained on, and the link.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import LATENCY_SYSTEMS, latency_table, means
from finemoe.simulation.systems import System
from finemoe.simulation.testbed import Testbed
from finemoe.traces import RoutingTrace

RULES = ("finemoe", "lfu", "lru", "lfu-aged")
_LINK_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_OURS, _THEIRS = "FineMoE", "ProMoE"


def disagreement_table(
    history: RoutingTrace,
    served: RoutingTrace,
    hardware: str,
    expert_memory: float,
    capacities: Sequence[int],
    training_requests: Sequence[int],
    prefetch_distance: int = 3,
    store_capacity: int = 1000,
    model: str | None = None,
) -> pd.DataFrame:
    """FineMoE and ProMoE under varied assumptions.

    Args:
        history: what the systems know in advance; served: other requests.
        hardware: the testbed.
        expert_memory: share of all routed experts.
        capacities: values of C, the capacity of FineMoE's store, in maps.
        training_requests: numbers of requests of the history that ProMoE learns from.
        prefetch_distance, store_capacity: d in layers and C in maps where they are not varied.
        model: the model that supplies sizes, as in `replay`.
    Returns:
        Rows (assumption, value, system, and the columns of `analysis.latency.means`); value is a text.
    """
    shared: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "model": model}
    ours, theirs = ({name: LATENCY_SYSTEMS[name]} for name in (_OURS, _THEIRS))

    def row(
        assumption: str, value: object, known: RoutingTrace, systems: dict[str, System], machine: str | Testbed, **changed: Any
    ) -> pd.DataFrame:
        table = latency_table(known, served, systems, machine, [expert_memory], **shared | changed)
        return means(table, ["system"]).assign(assumption=assumption, value=str(value))

    tables = [row("as in Fig. 10", "", history, ours | theirs, hardware)]
    tables += [row("store capacity (maps)", c, history, ours, hardware, store_capacity=c) for c in capacities]
    for rule in RULES:
        evicting = {name: replace(system, eviction=rule) for name, system in (ours | theirs).items()}
        tables.append(row("eviction rule", rule, history, evicting, hardware))
    for count in training_requests:
        known = history.select(np.arange(min(count, history.num_requests)))
        tables.append(row("requests ProMoE learns from", count, known, theirs, hardware))
    testbed = Testbed.load(hardware)
    for factor in _LINK_FACTORS:
        rates: dict[str, Any] = {
            "link_bytes_per_s": factor * testbed.link_bytes_per_s,
            "host_bytes_per_s": factor * testbed.host_bytes_per_s,
        }
        tables.append(row("link (times)", factor, history, ours | theirs, replace(testbed, **rates)))
    return pd.concat(tables, ignore_index=True)


def crossings(table: pd.DataFrame) -> dict[str, str]:
    """For every assumption: the values at which FineMoE's TPOT is below ProMoE's and their intervals do not overlap."""
    reference = table[table.assumption == "as in Fig. 10"].set_index("system")
    found = {}
    for assumption, part in table[table.assumption != "as in Fig. 10"].groupby("assumption", sort=False):
        ahead = []
        for value, cell in part.groupby("value", sort=False):
            by_system = cell.set_index("system")
            ours, theirs = (by_system.loc[name] if name in by_system.index else reference.loc[name] for name in (_OURS, _THEIRS))
            if ours.tpot_s_high < theirs.tpot_s_low:
                ahead.append(str(value))
        found[str(assumption)] = ", ".join(ahead) or "none of the values tried"
    return found
