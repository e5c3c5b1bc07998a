"""Online serving (Fig. 11): requests arrive, queue for a single server, and are served in order of arrival.

The store and the activation matrices start empty and learn from the served requests, as in the paper. ProMoE's predictors are
trained in advance on requests of another dataset, as in its own publication; without such requests they also learn online.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.arrivals import queued
from finemoe.artifact.analysis.latency import request_rows
from finemoe.artifact.progress import progress
from finemoe.simulation.arrangement import Arrangement
from finemoe.simulation.replay import sweep
from finemoe.simulation.systems import System, left_out
from finemoe.traces import RoutingTrace

_TRAINED_BEFOREHAND = ("promoe",)


def online_table(
    trace: RoutingTrace,
    arrivals: pd.DataFrame,
    systems: Mapping[str, System],
    hardware: str,
    expert_memory: float,
    prefetch_distance: int,
    store_capacity: int = 1000,
    seed: int = 0,
    training: RoutingTrace | None = None,
) -> pd.DataFrame:
    """Every arriving request under every system.

    Args:
        trace: the iterations that requests are made of.
        arrivals: as returned by `analysis.arrivals`.
        systems: systems by name.
        training: requests that ProMoE's predictors are trained on, none of them from `trace`.
    Returns:
        The rows of `latency_table` with arrival_s, prompt_tokens, new_tokens, service_s (from the start of service), waiting_s
        (before it) and latency_s (the sum of both).
    """
    tables = []
    arrivals_s, prompt_tokens, new_tokens = (arrivals[name].to_numpy() for name in ("arrival_s", "prompt_tokens", "new_tokens"))
    missing = left_out(trace, systems, prefetch_distance)
    for name, system in progress(systems.items(), "replaying", "system", len(systems)):
        if name in missing:
            continue
        needed = trace.with_strides(system.strides(prefetch_distance))
        arrangement = Arrangement.arriving(needed, arrivals_s, prompt_tokens, new_tokens, seed)
        options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "seed": seed}
        known = training if system.policy in _TRAINED_BEFOREHAND else None
        options |= {"hardware": hardware, "arrangement": arrangement, **system.options}
        report = sweep(arrangement.trace, system.policy, [expert_memory], [system.eviction], known, **options)[0]
        rows = pd.concat([request_rows(report, name, expert_memory), arrivals.reset_index(drop=True)], axis=1)
        decode_s = np.where(rows.num_decode_steps > 0, rows.tpot_s * rows.num_decode_steps, 0.0)
        service_s = rows.ttft_s.to_numpy() + decode_s
        waiting_s = queued(arrivals_s, service_s)
        tables.append(rows.assign(service_s=service_s, waiting_s=waiting_s, latency_s=service_s + waiting_s))
    return pd.concat(tables, ignore_index=True)


def online_summary(requests: pd.DataFrame) -> pd.DataFrame:
    """Per model and system: mean service time, and median and 95th percentile of latency and waiting time, in seconds."""
    groups = requests.groupby(["model", "system"], sort=False)
    summary = pd.DataFrame({"service_s": groups.service_s.mean(), "waiting_s": groups.waiting_s.mean()})
    summary["latency_p50_s"], summary["latency_p95_s"] = groups.latency_s.median(), groups.latency_s.quantile(0.95)
    return summary.reset_index()
