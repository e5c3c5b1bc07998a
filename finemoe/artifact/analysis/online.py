"""Online serving (Fig. 11): requests arrive, wait for the one server, and are served in the order of arrival.

The store and the activation matrices start empty and learn from what is served, as in the paper. ProMoE's predictors are trained
beforehand, as its own publication has it, on requests of another dataset; without one they learn online too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.arrivals import queued
from finemoe.artifact.analysis.latency import BASELINES, request_rows
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.progress import progress
from finemoe.intervals import bootstrap_ratio
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
        trace: whose iterations the requests are made of. arrivals: as `analysis.arrivals` gives them.
        training: what ProMoE's predictors are trained on, no request of `trace` among them.
    Returns:
        The rows of `latency_table` with arrival_s, prompt_tokens, new_tokens, service_s (from its start), waiting_s (before
        it) and latency_s (both).
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
    """Per model and system: mean service time, and median and 95th percentile of latency and waiting, in seconds."""
    groups = requests.groupby(["model", "system"], sort=False)
    summary = pd.DataFrame({"service_s": groups.service_s.mean(), "waiting_s": groups.waiting_s.mean()})
    summary["latency_p50_s"], summary["latency_p95_s"] = groups.latency_s.median(), groups.latency_s.quantile(0.95)
    return summary.reset_index()


def online_claim(requests: pd.DataFrame, seed: int = 0) -> Claim:
    """FineMoE's latency is left of every baseline's."""
    rows = []
    for model, part in requests.groupby("model", sort=False):
        ours = part[part.system == "FineMoE"]
        for baseline in BASELINES:
            theirs = part[part.system == baseline]
            if len(theirs):
                gain = bootstrap_ratio(*_paired(theirs.service_s, ours.service_s), seed=seed)
                is_left = bool((_deciles(ours.latency_s) < _deciles(theirs.latency_s)).all())
                rows.append({"model": model, "baseline": baseline, "gain": gain.value, "low": gain.low, "is_left": is_left})
    gains = pd.DataFrame(rows)
    is_ahead = gains.is_left & (gains.low > 0)
    mean = gains.groupby("baseline", sort=False).gain.mean()
    others = "; ".join(f"{row.baseline} on {row.model} ({row.gain:+.0%})" for row in gains[~is_ahead].itertuples())
    exceptions = f"Not left of: {others}. " if others else ""
    return Claim.judged(
        [
            Statement.of("latency lower than a baseline's at every decile", "miniatures", gains.is_left),
            Statement.of("service time lower than a baseline's", "miniatures", gains.low > 0),
        ],
        id="F11",
        artefact="Fig. 11",
        claim="Online, FineMoE's request latency is left of every other system's",
        reported="FineMoE left of all; no number",
        reproduced="mean service time against " + ", ".join(f"{name} {-gain:+.0%}" for name, gain in mean.items()),
        panel="miniatures' routing, one request at a time",
        executor="simulated",
        why=f"In {int(is_ahead.sum())} of {len(gains)} comparisons FineMoE's latency is lower at every decile and its service "
        f"time lower with the whole paired interval. {exceptions}"
        f"{requests.request.nunique()} requests were served, where the paper has 256. "
        "At the paper's rate requests queue up, so that latency is mostly waiting and grows with the number of requests. The "
        "recorded iterations recur, which flatters whoever remembers them.",
    )


def _paired(theirs: "pd.Series[float]", ours: "pd.Series[float]") -> tuple[np.ndarray, np.ndarray]:
    return theirs.to_numpy() - ours.to_numpy(), theirs.to_numpy()


def _deciles(values: "pd.Series[float]") -> np.ndarray:
    deciles: np.ndarray = np.quantile(values, np.arange(1, 10) / 10)
    return deciles
