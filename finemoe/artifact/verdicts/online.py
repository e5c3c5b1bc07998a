"""The claim on online serving: Fig. 11."""

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.latency import BASELINES
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.gains import SYSTEM
from finemoe.intervals import bootstrap_ratio


def online_tests(requests: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """FineMoE against every baseline, model by model, over the same requests.

    Args:
        requests: as `analysis.online.online_table` has them, with the model.
    Returns:
        Rows (model, baseline, gain, low, is_left, is_shorter): by what share the mean service time is lower, with the lower bound
        of its paired interval; whether the latency is lower at every decile; whether the whole interval is above zero.
    """
    rows = []
    for model, part in requests.groupby("model", sort=False):
        ours = part[part.system == SYSTEM]
        for baseline in BASELINES:
            theirs = part[part.system == baseline]
            if len(theirs):
                gain = bootstrap_ratio(*_paired(theirs.service_s, ours.service_s), seed=seed)
                is_left = bool((_deciles(ours.latency_s) < _deciles(theirs.latency_s)).all())
                rows.append({"model": model, "baseline": baseline, "gain": gain.value, "low": gain.low, "is_left": is_left})
    tests = pd.DataFrame(rows)
    return tests.assign(is_shorter=tests.low > 0)


def online_claim(tests: pd.DataFrame, num_requests: int) -> Claim:
    """FineMoE's latency is left of every baseline's.

    Args:
        tests: as `online_tests` returns them. num_requests: served by every system.
    """
    is_ahead = tests.is_left & tests.is_shorter
    mean = tests.groupby("baseline", sort=False).gain.mean()
    others = "; ".join(f"{row.baseline} on {row.model} ({row.gain:+.0%})" for row in tests[~is_ahead].itertuples())
    exceptions = f"Not left of: {others}. " if others else ""
    return Claim.judged(
        [
            Statement.of("latency lower than a baseline's at every decile", "miniatures", tests.is_left),
            Statement.of("service time lower than a baseline's", "miniatures", tests.is_shorter),
        ],
        id="F11",
        artefact="Fig. 11",
        claim="Online, FineMoE's request latency is left of every other system's",
        reported="FineMoE left of all; no number",
        reproduced="mean service time against " + ", ".join(f"{name} {-gain:+.0%}" for name, gain in mean.items()),
        panel="miniatures' routing, one request at a time",
        executor="simulated",
        why=f"In {int(is_ahead.sum())} of {len(tests)} comparisons FineMoE's latency is lower at every decile and its service "
        f"time lower with the whole paired interval. {exceptions}"
        f"{num_requests} requests were served, where the paper has 256. "
        "At the paper's rate requests queue up, so that latency is mostly waiting and grows with the number of requests. The "
        "recorded iterations recur, which favours systems that remember them.",
    )


def _paired(theirs: "pd.Series[float]", ours: "pd.Series[float]") -> tuple[np.ndarray, np.ndarray]:
    return theirs.to_numpy() - ours.to_numpy(), theirs.to_numpy()


def _deciles(values: "pd.Series[float]") -> np.ndarray:
    deciles: np.ndarray = np.quantile(values, np.arange(1, 10) / 10)
    return deciles
